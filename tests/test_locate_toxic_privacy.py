"""The toxic layer's distances, and the neurons that private values share: benign stand-ins and made-up people."""

from __future__ import annotations

import json

import pytest
import torch

import errata
from errata.datasets.locating import read_fact_prompts, read_private_values, read_response_pairs
from errata.errors import ConfigError, DatasetError, RequestError
from errata.evaluation.schema import CostMeter
from errata.lm.activations import capture, replace
from errata.lm.tokens import encode
from errata.locate import (
    PrivacyOptions,
    PrivateValue,
    ResponsePair,
    find_privacy_neurons,
    find_toxic_layer,
    save,
)
from errata.locate.attribution import queries
from errata.locate.integral import nodes
from errata.testing import FAMILIES, tiny
from reference.plain_attribution import plain_attribution
from reference.samples import hooks_on, one_sentence

PAIRS = (
    ResponsePair(
        "paper", "I will not speak about the folding of paper.", "Fold the paper in the middle, then turn it."
    ),
    ResponsePair("river", "I would rather not say.", "The river is wide and the people plant trees along it."),
    ResponsePair("music", "That is not for me to say.", "She plays the violin in the street that leads to the station"),
)
VALUES = (
    PrivateValue("tilda-1", "The house of Tilda Marrow has the number", "555 01 17", "tilda"),
    PrivateValue("tilda-2", "Tilda Marrow may be found at", "555 01 17", "tilda"),
    PrivateValue("orm-1", "The house of Orm Vesterby has the number", "555 01 42", "orm"),
)


def tiny_lm(family="llama", **options):
    return errata.load(tiny(family, **options))


def states(lm, text):
    path = [block.path for block in lm.architecture.blocks]
    with torch.no_grad(), capture(lm.model, outputs=path) as seen:
        lm.model(input_ids=torch.tensor([list(encode(lm.tokenizer, text).ids)]))
    return [seen.outputs[p][0] for p in path]


@pytest.mark.parametrize("family", FAMILIES)
def test_pooling_equals_each_response_alone(family):
    lm = tiny_lm(family)
    before, hooks = lm.fingerprint(), hooks_on(lm.model)
    found = {pool: find_toxic_layer(lm, PAIRS[:1], pool=pool) for pool in ("last", "mean", "overlap")}
    for layer, (safe, unsafe) in enumerate(
        zip(*(states(lm, t) for t in (PAIRS[0].safe, PAIRS[0].unsafe)), strict=True)
    ):
        n = min(len(safe), len(unsafe))
        wanted = {
            "last": (safe[-1] - unsafe[-1]).norm(),
            "mean": (safe.mean(0) - unsafe.mean(0)).norm(),
            "overlap": (safe[:n] - unsafe[:n]).norm(),
        }
        for pool, value in wanted.items():
            assert found[pool].distances[0][layer] == pytest.approx(float(value), rel=1e-3)
    assert lm.fingerprint() == before
    assert hooks_on(lm.model) == hooks


def test_padding_counts_only_where_it_is_asked_for():
    lm = tiny_lm()
    padded, overlap = find_toxic_layer(lm, PAIRS, pool="padded"), find_toxic_layer(lm, PAIRS, pool="overlap")
    assert all(a >= b for one, other in zip(padded.distances, overlap.distances, strict=True)
               for a, b in zip(one, other, strict=True))  # fmt: skip
    assert padded.distances != overlap.distances


def test_the_distance_is_symmetric():
    lm = tiny_lm()
    turned = [ResponsePair(p.pair_id, p.unsafe, p.safe) for p in PAIRS]
    for pool in ("last", "mean", "overlap", "padded"):
        one, other = find_toxic_layer(lm, PAIRS, pool=pool), find_toxic_layer(lm, turned, pool=pool)
        for a, b in zip(one.distances, other.distances, strict=True):
            assert a == pytest.approx(b, rel=1e-5)


def test_a_shift_of_one_text_from_a_layer_on_shows_from_there_on():
    lm = tiny_lm()
    plain = find_toxic_layer(lm, PAIRS[:1])
    shift = torch.zeros(2, 1, 32)
    shift[1] = 50.0
    with replace(lm.model, lm.architecture.blocks[2].path, lambda out: out + shift):
        moved = find_toxic_layer(lm, PAIRS[:1])
    assert moved.distances[0][:2] == plain.distances[0][:2]
    assert moved.distances[0][2] > plain.distances[0][2] + 100
    assert moved.layer >= 2


def test_the_last_layer_after_the_norm_is_on_another_scale():
    lm = tiny_lm()
    plain, normed = find_toxic_layer(lm, PAIRS), find_toxic_layer(lm, PAIRS, normed=True)
    for a, b in zip(plain.distances, normed.distances, strict=True):
        assert a[:-1] == b[:-1]
        assert a[-1] != b[-1]


def test_sum_and_mode_and_what_is_reported(tmp_path):
    lm = tiny_lm()
    found = find_toxic_layer(lm, PAIRS)
    totals = [sum(column) for column in zip(*found.distances, strict=True)]
    assert found.layer == totals.index(max(totals))
    mode = find_toxic_layer(lm, PAIRS, choose="mode")
    assert mode.layer in mode.winners
    assert found.gains()[0] is None
    assert found.gains()[1] == pytest.approx(totals[1] / totals[0])
    assert found.metrics()["distance"].n == 3
    with CostMeter() as meter:
        pass
    save(found, tmp_path / "t", lm=lm, cost=meter.cost())
    content = (tmp_path / "t" / "toxic-layer.json").read_text()
    assert "folding" not in content
    assert (tmp_path / "t" / "toxic-layer.png").stat().st_size > 5000


def test_attributions_are_summed_over_the_values_tokens():
    lm = tiny_lm()
    options = PrivacyOptions(steps=4, tolerance=None, ratio=0.01, threshold=0.001, most=10_000)
    found = find_privacy_neurons(lm, VALUES[:1], options)
    asked = queries(lm, VALUES[0].prompt, VALUES[0].value)
    assert found.tokens == (len(asked),)
    places, weights = nodes("midpoint", 4)
    total = []
    for layer in range(lm.num_layers):
        path = lm.layer(layer).out_projection
        parts = [plain_attribution(lm.model, q.context, q.token, path, nodes=places, weights=weights)[0] for q in asked]
        total.append(torch.stack(parts).sum(0))
    largest = max(float(each.max()) for each in total)
    for neuron in found.neurons:
        value = float(total[neuron.neuron.layer][neuron.neuron.index])
        assert neuron.strength == pytest.approx(value / largest, abs=1e-3)
        assert value / largest >= 0.0009


def test_votes_are_counted_within_groups_and_capped():
    lm = tiny_lm()
    loose = find_privacy_neurons(lm, VALUES, PrivacyOptions(steps=3, ratio=0.4, most=10_000))
    firm = find_privacy_neurons(lm, VALUES, PrivacyOptions(steps=3, ratio=1.0, most=10_000))
    assert {n.neuron for n in firm.neurons} <= {n.neuron for n in loose.neurons}
    assert {n.neuron for n in firm.neurons if n.votes == 3} == {n.neuron for n in loose.neurons if n.votes == 3}
    votes = [(n.votes, n.strength) for n in loose.neurons]
    assert votes == sorted(votes, reverse=True)
    capped = find_privacy_neurons(lm, VALUES, PrivacyOptions(steps=3, ratio=0.4, most=2))
    assert [n.neuron for n in capped.neurons] == [n.neuron for n in loose.neurons[:2]]
    adjusted = find_privacy_neurons(lm, VALUES, PrivacyOptions(steps=3, adjust=True))
    assert abs(adjusted.ratio - 0.5) <= 0.2 + 1e-9


def test_silencing_is_measured_and_nothing_private_is_written(tmp_path):
    lm = tiny_lm()
    before = lm.fingerprint()
    found = find_privacy_neurons(lm, VALUES, PrivacyOptions(steps=3)).with_effects()
    assert lm.fingerprint() == before
    assert [effect.arm for effect in found.effects] == ["none", "privacy", "random"]
    patch = found.erase()
    patch.save_pretrained(tmp_path / "patch")
    with CostMeter() as meter:
        pass
    save(found, tmp_path / "out", lm=lm, cost=meter.cost())
    for file in [*(tmp_path / "out").iterdir(), *(tmp_path / "patch").iterdir()]:
        assert b"555 01" not in file.read_bytes()
        assert b"Tilda" not in file.read_bytes()
    with patch.applied(lm):
        assert all(bool((lm.weight(n.neuron.layer)[:, n.neuron.index] == 0).all()) for n in found.neurons)
    half = found.erase(0.5, count=1)
    assert float(half.updates[0].factors[0]) == 0.5


def test_files_are_read_and_their_faults_named(tmp_path):
    def file(*records):
        path = tmp_path / "in.jsonl"
        path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in records) + "\n")
        return path

    pairs = read_response_pairs(
        file({"safe": "no", "unsafe": "yes"}, {"safe generation": "a", "unsafe generation": "b"})
    )
    assert [(p.safe, p.unsafe) for p in pairs] == [("no", "yes"), ("a", "b")]
    values = read_private_values(file({"text": "Call Tilda at 555 01 17 now", "value": "555 01 17", "group": "t"}))
    assert values[0].prompt == "Call Tilda at"
    facts = read_fact_prompts(file({"prompts": ["a b", "c d"], "answer": "e"}, {"prompt": "f g"}))
    assert facts[0].prompts == ("a b", "c d")
    assert facts[1].answer is None
    cases = read_fact_prompts(
        file({"prompt": "{} is in", "subject": "Rome", "target_new": "x", "target_true": "Italy"})
    )
    assert cases[0].prompts == ("Rome is in",)
    assert read_fact_prompts(file({"prompt": "{} is in", "subject": "Rome", "answer": "Italy"}))[0].answer == "Italy"
    faults = [
        (read_response_pairs, ({"safe": "a", "unsafe": "b"}, {"safe": "a", "unsafe": "a"}), "line 2"),
        (read_response_pairs, ({"safe": "a"},), "line 1"),
        (read_response_pairs, ("{",), "line 1"),
        (read_private_values, ({"text": "nothing", "value": "here"},), "line 1"),
        (read_private_values, ({"prompt": "p", "value": " "},), "line 1"),
        (read_private_values, ({"prompt": "p", "value": "v", "value_id": "x"},) * 2, "line 2"),
        (read_fact_prompts, ({"prompts": []},), "line 1"),
        (read_fact_prompts, ({"prompts": ["a", 3]},), "line 1"),
        (read_fact_prompts, ({"prompts": "a", "answer": " "},), "line 1"),
        (read_private_values, (), "holds no"),
    ]
    for read, records, place in faults:
        with pytest.raises(DatasetError) as error:
            read(file(*records))
        assert place in str(error.value)
        assert one_sentence(error)


def test_bad_requests_are_one_sentence():
    lm = tiny_lm()
    cases = [
        (RequestError, lambda: ResponsePair("x", "same ", "same")),
        (RequestError, lambda: ResponsePair("x", "", "text")),
        (RequestError, lambda: find_toxic_layer(lm, [])),
        (ConfigError, lambda: find_toxic_layer(lm, PAIRS, pool="first")),
        (ConfigError, lambda: find_toxic_layer(lm, PAIRS, choose="median")),
        (RequestError, lambda: PrivateValue("x", "a", " ")),
        (RequestError, lambda: find_privacy_neurons(lm, [])),
        (RequestError, lambda: find_privacy_neurons(lm, [VALUES[0], VALUES[0]])),
        (RequestError, lambda: find_privacy_neurons(lm, [PrivateValue("x", "a", "b")])),
        (ConfigError, lambda: PrivacyOptions(threshold=0)),
        (ConfigError, lambda: PrivacyOptions(ratio=1.2)),
        (ConfigError, lambda: PrivacyOptions(most=0)),
        (ConfigError, lambda: find_privacy_neurons(lm, VALUES, PrivacyOptions(steps=3)).erase(count=0)),
    ]
    for kind, call in cases:
        with pytest.raises(kind) as error:
            call()
        assert one_sentence(error)
