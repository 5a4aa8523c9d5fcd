"""The masked variational autoencoder as such: it knows no modality."""
