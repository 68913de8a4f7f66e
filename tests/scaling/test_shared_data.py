"""The public tables are those that the goals of this folder were measured on."""

import numpy as np
import pytest

ROWS = {
    "chinchilla_epoch": 245, "gadre_overtraining": 104, "datablations": 296, "kempner_loss_to_loss": 535,
    "misfitting": 261, "steplaw_dense_lr_bs": 1911, "gemstones": 770, "llama3_isoflop_digitised": 133,
    "kyotakano_llm_example": 234, "regmix": 1088, "mixlaws_2domain": 110, "mixlaws_5domain": 1425,
    "mixlaws_redpajama": 1161,
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_a_table_has_the_rows_it_had(shared_table, name):
    table = shared_table(name)
    assert {len(column) for column in table.values()} == {ROWS[name]}


def test_columns_are_numbers_or_text(shared_table):
    table = shared_table("gadre_overtraining")
    assert table["dataset"].dtype.kind == "U" and set(table["dataset"]) == {"c4_original", "rpj", "rw_original"}
    assert table["params"].dtype == np.float64 and (table["params"] > 1e6).all()
    with pytest.raises(ValueError, match="read-only"):
        table["params"][0] = 0
