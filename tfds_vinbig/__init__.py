"""VinBigData chest X-rays as a TFDS dataset, and the phantom that stands in for them."""
