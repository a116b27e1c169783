"""What an import costs: transformers and torch are loaded by the processes that need them alone."""

from __future__ import annotations

import sys

from tests.tools.patience import completed


def test_a_bank_is_read_and_written_without_transformers() -> None:
    code = (
        "import sys\n"
        "for name in ('reader', 'writer', 'maintenance'):\n"
        "    __import__(f'regrad.bank.{name}')\n"
        "    assert 'transformers' not in sys.modules, name\n"
    )
    done = completed([sys.executable, "-c", code], 60)
    assert done.returncode == 0, done.stderr


def test_a_job_that_has_no_model_in_its_process_imports_none_of_what_models_are_made_of() -> None:
    code = (
        "import sys\n"
        "for name in ('meta_train', 'finetune', 'train_adapters', 'build_bank', 'synthesize', 'evaluate'):\n"
        "    __import__(f'ray_jobs.{name}')\n"
        "    assert 'transformers.modeling_utils' not in sys.modules, name\n"
    )
    done = completed([sys.executable, "-c", code], 60)
    assert done.returncode == 0, done.stderr


def test_a_replica_without_a_model_needs_no_transformers_and_a_question_at_the_command_line_no_torch() -> None:
    code = (
        "import sys\n"
        "for name in ('serve', 'trial', 'demo', 'jobs', 'bank', 'submit', 'passages'):\n"
        "    __import__(f'regrad.cli.{name}')\n"
        "    assert 'torch' not in sys.modules, name\n"
        "for name in ('config', 'evidence', 'gateway'):\n"
        "    __import__(f'serve_app.{name}')\n"
        "    assert 'transformers' not in sys.modules, name\n"
    )
    done = completed([sys.executable, "-c", code], 60)
    assert done.returncode == 0, done.stderr
