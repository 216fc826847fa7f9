"""The table of nearest words has what the study has."""

import dataclasses

from clipbias.report import study_tables
from tests.report.synthetic import synthetic_results


def test_every_prompt_has_a_row_until_there_are_too_many(monkeypatch):
    study = synthetic_results(pictures=1)
    prompts = study.words["ivlp"].prompts
    rows = study_tables.word_table(study).rows
    assert len(rows) == len(prompts) == 2
    first, second = prompts[1].distances
    words = f"photo ({first:.3g}), tex- ({second:.3g})"
    assert list(rows[1]) == ["IVLP", "2", words, "0.5"]
    monkeypatch.setattr(study_tables, "MOST_ROWS", 1)
    cut = study_tables.word_table(study)
    assert len(cut.rows) == 1 and "1 more prompt in results.json" in cut.caption


def test_a_word_of_a_class_names_it():
    study = synthetic_results(pictures=1)
    ivlp = study.words["ivlp"]
    prompts = (dataclasses.replace(ivlp.prompts[0], class_name="a cat"),)
    study.words["ivlp"] = dataclasses.replace(ivlp, prompts=prompts)
    (row,) = study_tables.word_table(study).rows
    assert list(row[:2]) == ["IVLP, a cat", "1"]


def test_without_learned_prompts_there_is_no_table():
    study = synthetic_results(pictures=1)
    del study.words["ivlp"]
    assert study_tables.word_table(study) is None
    assert study_tables.word_table(dataclasses.replace(study, words=None)) is None
