"""What the estimators take from scikit-learn's private modules, in one place: it may move between versions."""

from sklearn.utils._param_validation import Interval, MissingValues, StrOptions
from sklearn.utils._set_output import _get_output_config as get_output_config
from sklearn.utils.validation import _check_feature_names_in as check_feature_names_in

__all__ = ["Interval", "MissingValues", "StrOptions", "check_feature_names_in", "get_output_config"]
