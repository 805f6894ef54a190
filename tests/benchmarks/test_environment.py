import torch

import deltasam_fairseq
from deltasam_fairseq.benchmarks import environment
from deltasam_fairseq.recipes import environment_record


def test_the_machine_is_described() -> None:
    found = environment.hardware()
    assert found["processor"]
    assert found["cores"] >= 1
    assert found["memory_bytes"] > 2**20
    assert len(found["gpus"]) == torch.cuda.device_count()


def test_versions_are_those_that_run() -> None:
    found = environment.versions()
    assert found["torch"].startswith(torch.__version__.partition("+")[0])
    assert found["deltasam_fairseq"] == deltasam_fairseq.__version__


def test_both_kinds_of_records_describe_the_same_machine() -> None:
    ours, of_runs = environment.hardware(), environment_record.hardware()
    assert (ours["processor"], ours["cores"]) == (of_runs["cpu"], of_runs["cores"])
    assert environment.versions() == environment_record.versions()
    assert environment.commit() == environment_record.commit()
