import pytest

from patch.pipeline.results.record import projection_density, projections


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.layers.3.self_attn.q_proj", ("q_proj", 3)),
        ("transformer.h.11.attn.c_attn", ("c_attn", 11)),
        ("experts.2.w1.7", ("7", 2)),
        ("head", ("head", 0)),
    ],
)
def test_names_of_linears(name, expected):
    assert projections([name]) == {name: expected}


def test_a_projection_that_a_block_has_twice_is_named_in_full():
    names = ["h.0.attn.c_proj", "h.0.mlp.c_proj", "h.0.mlp.c_fc", "h.1.attn.c_proj"]
    assert list(projections(names).values()) == [
        ("attn.c_proj", 0),
        ("mlp.c_proj", 0),
        ("c_fc", 0),
        ("attn.c_proj", 1),
    ]


def test_density_is_a_mean_over_blocks():
    shares = {"h.0.attn.c_proj": 0.5, "h.0.mlp.c_proj": 1.0, "h.1.attn.c_proj": 0.75, "h.1.mlp.c_proj": 0.5}
    assert projection_density(shares) == {"attn.c_proj": 0.625, "mlp.c_proj": 0.75}
