from dataclasses import replace

import numpy as np
import pytest

from configs import retina
from jaxdet import InputError
from jaxdet.runs import workdir
from jaxdet.runs.identity import check_run, new_run


def test_a_run_is_of_its_images(config, dataset, sets, tmp_path):
    """Others under the same workdir, or the same corrected and built anew, are refused."""
    fields, train_set = retina.get_fields(), sets[0]
    run = new_run(config, dataset, train_set, [])
    workdir.write_config(tmp_path, config, run)
    assert check_run(config, fields, dataset, train_set, tmp_path)[1] == run
    fewer = train_set.take(np.arange(len(train_set) - 1))
    with pytest.raises(InputError, match="has other training images than tfds_vinbig/256"):
        check_run(config, fields, dataset, fewer, tmp_path)
    other = replace(dataset, checksums=dataset.checksums + 1)
    with pytest.raises(InputError, match="has other images or annotations than"):
        check_run(config, fields, other, train_set, tmp_path)
    renamed = replace(dataset, class_names=("Mass", *dataset.class_names[1:]))
    with pytest.raises(InputError, match="has other class names than"):
        check_run(config, fields, renamed, train_set, tmp_path)
