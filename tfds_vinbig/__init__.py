"""Files of the outside, and the TFDS datasets that are made of them."""
