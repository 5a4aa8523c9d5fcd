"""Fitted estimators in files and pickles: what comes back answers as what went in, on any machine."""

import io
import json
import pickle
import shutil

import joblib
import numpy as np
import pandas as pd
import pytest
from containers import N, array, columns, pandas_nullable
from safetensors.numpy import save_file
from toy import correlated, curved, frame

from vaeimpute import VAEImputer, VAEOutlierDetector, persistence

ANSWERS = {
    VAEImputer: ["transform", "impute", "log_likelihood", "anomaly_score", "cell_anomaly_score", "encode"],
    VAEOutlierDetector: ["log_likelihood", "anomaly_score", "cell_anomaly_score", "p_values", "predict", "repair"],
}


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(fits, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "model.safetensors"
    fits[pandas_nullable].save(path)
    return path


def test_a_loaded_model_answers_like_the_saved_one(make, fits, tmp_path):
    fits[make].save(tmp_path / "model")
    loaded = VAEImputer.load(tmp_path / "model")
    assert repr(loaded) == repr(fits[make])
    assert loaded.history_ == fits[make].history_
    assert vars(loaded).keys() == vars(fits[make]).keys()
    X = make()
    assert columns(loaded.impute(X)) == columns(fits[make].impute(X))
    np.testing.assert_array_equal(loaded.log_likelihood(X), fits[make].log_likelihood(X))
    np.testing.assert_array_equal(loaded.anomaly_score(X), fits[make].anomaly_score(X))
    assert columns(loaded.cell_anomaly_score(X)) == columns(fits[make].cell_anomaly_score(X))
    assert columns(loaded.sample(3, random_state=0)) == columns(fits[make].sample(3, random_state=0))


def test_parameters_survive_the_file(tmp_path):
    X = pd.DataFrame(array()).set_axis(pd.Index([3, 1]), axis=1)
    kinds, generator = {3: "numeric", 1: "count"}, np.random.RandomState(0)
    fitted = VAEImputer(
        kinds=kinds, missing_values=pd.NA, point="median", add_indicator=True, max_iter=7, random_state=generator
    )
    fitted.fit(X).save(tmp_path / "m")
    params = VAEImputer.load(tmp_path / "m").get_params()
    assert params["kinds"] == kinds
    assert (params["point"], params["add_indicator"], params["random_state"]) == ("median", True, None)
    assert params["max_iter"] == 7
    refitted = VAEImputer.load(tmp_path / "m").fit(X)
    assert refitted.encoder_.schema == fitted.encoder_.schema


def test_load_takes_a_device(saved):
    assert VAEImputer.load(saved, device="cpu").device == "cpu"
    with pytest.raises(ValueError, match="device='abacus' cannot be used here"):
        VAEImputer.load(saved, device="abacus")


def test_a_model_from_a_machine_with_a_gpu_loads_without_one(saved, tmp_path):
    tensors, header = persistence.load(saved)
    header["params"]["device"] = "cuda:7"
    persistence.save(tmp_path / "m", tensors, header)
    assert len(VAEImputer.load(tmp_path / "m").impute(pandas_nullable())) == N


def test_files_that_are_not_models_of_this_class(saved, tmp_path):
    path = tmp_path / "model.safetensors"
    tensors, header = persistence.load(saved)

    shutil.copy(saved, path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="truncated"):
        VAEImputer.load(path)
    path.write_text("a,b\n1,2\n3,4\n")
    with pytest.raises(ValueError, match="not a safetensors file"):
        VAEImputer.load(path)
    persistence.save(path, tensors, header | {"class": "VAEOutlierDetector"})
    with pytest.raises(ValueError, match="holds a VAEOutlierDetector, not a VAEImputer"):
        VAEImputer.load(path)
    persistence.save(path, {}, {"class": "VAEImputer"})
    with pytest.raises(ValueError, match="does not fit this version of vaeimpute"):
        VAEImputer.load(path)
    persistence.save(path, tensors, header | {"params": header["params"] | {"colour": "red"}})
    with pytest.raises(ValueError, match=r"does not fit this version of vaeimpute .*colour"):
        VAEImputer.load(path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        VAEImputer.load(tmp_path / "nothing")


@pytest.mark.parametrize("estimator", [VAEImputer, VAEOutlierDetector])
def test_a_file_of_the_first_format_says_to_fit_and_save_again(estimator, tmp_path):
    header = {"class": estimator.__name__, "params": {}, "learned": {"modules": {}}}
    metadata = {
        "format": "vaeimpute",
        "format_version": "1",
        "library_version": "0.1.0",
        "header": json.dumps(header),
    }
    save_file({"weight": np.eye(2)}, tmp_path / "old.safetensors", metadata)
    with pytest.raises(ValueError, match=r"format version 1 \(written by vaeimpute 0.1.0\).* fit and save again"):
        estimator.load(tmp_path / "old.safetensors")


def test_a_failed_save_leaves_the_older_file(saved, tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    shutil.copy(saved, path)
    older = path.read_bytes()
    fitted = VAEImputer.load(path)
    fitted.kinds = {"real": object()}
    monkeypatch.setattr(json, "dumps", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fitted.save(path)
    assert path.read_bytes() == older
    assert list(tmp_path.iterdir()) == [path]


def test_names_that_cannot_be_saved(tmp_path):
    X = pd.DataFrame(np.arange(20.0).reshape(10, 2), columns=pd.date_range("2024", periods=2))
    with pytest.raises(TypeError, match="Column names must be text or numbers to be saved"):
        VAEImputer().fit(X).save(tmp_path / "m.safetensors")


# --- copies -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["linear", "trained", "full", "detector", "robust detector of a frame"])
def fitted(request):
    """An estimator, and new rows for it."""
    if request.param == "linear":
        return VAEImputer(dtype="float64", random_state=0).fit(correlated()), correlated(20, seed=1)
    if request.param == "trained":
        return VAEImputer(max_iter=20, random_state=0).fit(curved()), curved(20, seed=1)
    if request.param == "full":
        return VAEImputer(effort="full", max_iter=5, random_state=0).fit(curved()), curved(20, seed=1)
    if request.param == "detector":
        detector = VAEOutlierDetector(dtype="float64", random_state=np.random.RandomState(0))
        return detector.fit(correlated(60)), correlated(20, seed=1)
    return VAEOutlierDetector(contamination=0.1, random_state=0).fit(frame()), frame().iloc[:40]


def through_pickle(estimator, tmp_path):
    return pickle.loads(pickle.dumps(estimator))


def through_joblib(estimator, tmp_path):
    joblib.dump(estimator, tmp_path / "model.joblib")
    return joblib.load(tmp_path / "model.joblib", mmap_mode="r")


def through_skops(estimator, tmp_path):
    skops = pytest.importorskip("skops.io")
    content = skops.dumps(estimator)
    return skops.loads(content, trusted=skops.get_untrusted_types(data=content))


def through_a_file(estimator, tmp_path):
    estimator.save(tmp_path / "model.safetensors")
    return type(estimator).load(tmp_path / "model.safetensors")


@pytest.mark.parametrize("copied", [through_pickle, through_joblib, through_skops, through_a_file])
def test_copies_answer_alike(fitted, copied, tmp_path):
    estimator, X = fitted
    copy = copied(estimator, tmp_path)
    assert set(vars(copy)) == set(vars(estimator))
    for method in ANSWERS[type(estimator)]:
        want, got, again = (
            columns(np.atleast_2d(getattr(one, method)(X)))
            for one in (estimator, copy, pickle.loads(pickle.dumps(copy)))
        )
        assert got == want, method
        assert again == want, method
    if isinstance(estimator, VAEImputer):
        assert repr(copy) == repr(estimator)
        assert copy.history_ == estimator.history_
        np.testing.assert_array_equal(copy.sample(3, random_state=0), estimator.sample(3, random_state=0))
    else:
        assert copy.offset_ == estimator.offset_


def test_skops_trusts_all_but_the_estimator_itself(fitted):
    skops = pytest.importorskip("skops.io")
    untrusted = set(skops.get_untrusted_types(data=skops.dumps(fitted[0])))
    assert untrusted == {f"{type(fitted[0]).__module__}.{type(fitted[0]).__name__}"}


def test_pickle_keeps_what_it_does_not_know():
    estimator = VAEImputer(random_state=0).fit(pd.DataFrame(array())).set_output(transform="pandas")
    estimator.note, estimator.note_ = "mine", "mine too"
    copy = pickle.loads(pickle.dumps(estimator))
    assert (copy.note, copy.note_) == ("mine", "mine too")
    assert isinstance(copy.transform(pd.DataFrame(array())), pd.DataFrame)
    unfitted = pickle.loads(pickle.dumps(VAEImputer(kinds={"a": "numeric"})))
    assert unfitted.kinds == {"a": "numeric"}


def test_pickle_holds_arrays_instead_of_tensors(fitted):
    class NoTensors(pickle.Unpickler):
        def find_class(self, module, name):
            assert not module.startswith("torch"), f"{module}.{name} in a pickle"
            return super().find_class(module, name)

    NoTensors(io.BytesIO(pickle.dumps(fitted[0]))).load()


def test_a_pickle_of_another_version_says_to_fit_again():
    state = pickle.loads(pickle.dumps(VAEImputer(random_state=0).fit(correlated()))).__getstate__()
    del state["_fitted"]["format_version"]  # as before there was one
    with pytest.raises(ValueError, match="another version of vaeimpute"):
        VAEImputer.__new__(VAEImputer).__setstate__(state)


@pytest.mark.parametrize("name", ["density_.baseline", "density_.row_calibration.weight", "density_.ensemble.joint.W"])
def test_a_file_that_lacks_a_tensor_is_refused(name, tmp_path):
    path = tmp_path / "model.safetensors"
    VAEImputer(random_state=0).fit(correlated()).save(path)
    tensors, header = persistence.load(path)
    del tensors[name]
    persistence.save(path, tensors, header)
    with pytest.raises(ValueError, match="does not fit this version of vaeimpute"):
        VAEImputer.load(path)
