import math

import pytest

torch = pytest.importorskip("torch")

from nsfse.models.boundary import AdaptiveBoundary
from nsfse.training import losses


def test_right_answers_are_masked_out_of_the_denominator():
    logits, target = torch.tensor([[2.0, 5.0, 1.0]]), torch.tensor([0])
    blocked = torch.tensor([[False, True, False]])
    wanted = torch.nn.functional.cross_entropy(logits[:, [0, 2]], target)
    torch.testing.assert_close(losses.masked_cross_entropy(logits, blocked, target), wanted)
    assert losses.masked_cross_entropy(logits, torch.zeros_like(blocked), target) > wanted


def test_a_smoothed_label_is_shared_by_what_is_not_blocked():
    logits, target = torch.tensor([[2.0, 5.0, 1.0, -1.0]]), torch.tensor([0])
    blocked = torch.tensor([[False, True, False, False]])
    wanted = torch.nn.functional.cross_entropy(logits[:, [0, 2, 3]], target, label_smoothing=0.1)
    torch.testing.assert_close(losses.masked_cross_entropy(logits, blocked, target, 0.1), wanted)


def test_attributes_are_told_where_they_are_known_and_count_alike():
    logits = [torch.tensor([[2.0, 1.0], [0.0, 3.0], [5.0, 0.0]]), torch.tensor([[1.0, 0.0, 2.0]] * 3)]
    labels = torch.tensor([[0, -1], [1, 2], [-1, -1]])
    # By hand: -log softmax of the label where known; the mean over rows, then over attributes.
    first = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(-3))) / 2
    second = -2 + math.log(math.e + 1 + math.e**2)
    found = losses.attribute_loss(logits, labels, smoothing=0.0)
    torch.testing.assert_close(found, torch.tensor((first + second) / 2))
    assert losses.attribute_loss(logits, torch.full((3, 2), -1)) == 0
    assert losses.attribute_loss(logits, labels) > found  # the smoothed one, which these logits fit less


def test_a_blocked_candidate_gets_no_gradient():
    logits = torch.tensor([[2.0, 5.0, 1.0]], requires_grad=True)
    losses.masked_cross_entropy(logits, torch.tensor([[False, True, False]]), torch.tensor([0])).backward()
    assert logits.grad[0, 1] == 0 and logits.grad[0, 0] < 0 < logits.grad[0, 2]


def test_distillation_is_nothing_between_equals_and_teaches_only_the_student():
    student, teacher = torch.tensor([[1.0, 2.0]], requires_grad=True), torch.tensor([[2.0, 1.0]], requires_grad=True)
    assert losses.distillation(student, student).item() == pytest.approx(0, abs=1e-7)
    losses.distillation(student, teacher).backward()
    assert teacher.grad is None and student.grad[0, 0] < 0 < student.grad[0, 1]


def choose(queries=8, images=40, count=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(queries, images, generator=generator)
    target, reference = torch.arange(queries), torch.arange(queries) + queries
    blocked = torch.rand(queries, images, generator=generator) < 0.4
    blocked.scatter_(1, torch.stack([target, reference], 1), False)
    chosen = losses.choose_candidates(logits, blocked, target, reference, count, generator)
    return logits, blocked, target, reference, chosen


@pytest.mark.parametrize("seed", range(5))
def test_candidates_are_target_and_reference_first_never_blocked_and_all_different(seed):
    _, blocked, target, reference, chosen = choose(seed=seed)
    assert chosen.shape == (8, 12)
    assert torch.equal(chosen[:, 0], target) and torch.equal(chosen[:, 1], reference)
    assert not blocked.gather(1, chosen).any()
    assert all(len(set(row)) == 12 for row in chosen.tolist())


def test_the_hardest_free_candidates_are_among_them_and_the_rest_is_random():
    logits, blocked, target, reference, chosen = choose()
    free = logits.masked_fill(blocked, -9).scatter(1, torch.stack([target, reference], 1), -9)
    hardest = free.topk(5, 1).indices
    assert all(set(hard) <= set(row) for hard, row in zip(hardest.tolist(), chosen.tolist(), strict=True))
    generator = torch.Generator().manual_seed(99)
    other = losses.choose_candidates(logits, blocked, target, reference, 12, generator)
    assert torch.equal(other[:, :7], chosen[:, :7]) and not torch.equal(other[:, 7:], chosen[:, 7:])


def test_a_batch_smaller_than_the_candidates_gives_what_it_has():
    logits, none = torch.randn(2, 4), torch.zeros(2, 4, dtype=torch.bool)
    target, reference = torch.tensor([0, 1]), torch.tensor([2, 3])
    chosen = losses.choose_candidates(logits, none, target, reference, 16, torch.Generator())
    assert sorted(chosen[0].tolist()) == [0, 1, 2, 3]


def test_mismatches_are_the_random_half_and_the_reference_as_much_as_all_of_them():
    unknown = torch.zeros(1, 12, dtype=torch.long)
    assert losses.match_weights(unknown)[0].tolist() == [1] + [0] * 11
    assert losses.mismatch_weights(unknown, reference=False)[0].tolist() == [0, 0] + [0] * 5 + [1] * 5
    assert losses.mismatch_weights(unknown, reference=True)[0].tolist() == [0, 5] + [0] * 5 + [1] * 5


def test_boundary_terms_keep_the_words_weights():
    best = torch.rand(2, 3, 4)
    weights = torch.rand(2, 4, requires_grad=True)
    matched, mismatched = torch.tensor([[1, 0, 0], [0.5, 0.5, 0]]), torch.tensor([[0, 1, 0], [0, 0, 1]])
    terms = losses.boundary_samples(best, weights, matched, mismatched)
    assert torch.equal(terms.best, best) and not terms.mismatched.requires_grad
    assert torch.equal(terms.mismatched[0, 1], weights[0].detach()) and not terms.mismatched[0, [0, 2]].any()
    assert torch.equal(terms.matched[1, 1], weights[1].detach() / 2) and not terms.matched[:, 2].any()
    absent = losses.boundary_samples(best, -weights, matched, mismatched)
    assert not absent.matched.any() and not absent.mismatched.any()


def test_named_words_are_asked_for_weight_and_sign_and_others_for_nothing():
    weights = torch.tensor([[0.5, -0.2, 0.3], [0.9, 0.1, 0.0]], requires_grad=True)
    signs = torch.tensor([[1.0, -2.0, 0.5], [3.0, 1.0, 0.0]], requires_grad=True)
    named = torch.tensor([[0, -1, 1], [0, 0, 0]])
    loss = losses.word_role_loss(weights, signs, named)
    softplus = torch.nn.functional.softplus
    wanted = 0.5 * (softplus(torch.tensor(-2.0)) + softplus(torch.tensor(-0.5))) - torch.tensor(0.5).log()
    torch.testing.assert_close(loss, wanted)
    loss.backward()
    assert signs.grad[0, 1] > 0 > signs.grad[0, 2] and not signs.grad[1].any() and not signs.grad[0, 0]
    assert weights.grad[0, 1] > 0 > weights.grad[0, 2] and not weights.grad[1].any() and not weights.grad[0, 0]
    assert losses.word_role_loss(weights, signs, torch.zeros_like(named)).item() == 0.0


def ready_boundary(t):
    boundary = AdaptiveBoundary()
    boundary.state[6], boundary.state[8] = t, 1.0
    return boundary


def kinds(matched, mismatched):
    """Return (best [1, 1, K], terms): so many matched correspondences, then so many mismatched ones."""
    best = torch.cat([matched, mismatched])[None, None].requires_grad_()
    first = (torch.arange(best.shape[2]) < len(matched)).float()[None, None]
    return best, losses.BoundarySamples(best, first, 1 - first)


def test_the_boundary_loss_pushes_matched_up_and_mismatched_down_and_leaves_t_alone():
    best, terms = kinds(torch.full((2,), 0.45), torch.full((5,), 0.55))
    boundary = ready_boundary(0.5)
    losses.boundary_loss(boundary, terms).backward()
    assert (best.grad[0, 0, :2] < 0).all() and (best.grad[0, 0, 2:] > 0).all()
    assert boundary.t == 0.5
    assert losses.boundary_loss(AdaptiveBoundary(), terms) == 0


def test_the_boundary_loss_parts_the_two_kinds_but_never_moves_both_together():
    torch.manual_seed(0)
    best, terms = kinds(torch.rand(4) - 0.2, torch.rand(6) - 0.4)
    losses.boundary_loss(ready_boundary(0.3), terms).backward()
    assert float(best.grad[0, 0, :4].sum()) < -0.1
    assert float(best.grad.sum()) == pytest.approx(0.0, abs=1e-4)


def test_well_separated_correspondences_cost_next_to_nothing():
    def cost(matched, mismatched):
        _, terms = kinds(torch.tensor([matched]), torch.tensor([mismatched]))
        return losses.boundary_loss(ready_boundary(0.5), terms).item()

    assert cost(0.9, 0.1) < 0.01 < cost(0.55, 0.45) < cost(0.45, 0.55)


@pytest.mark.parametrize("boundary", [ready_boundary(0.3), AdaptiveBoundary()])
def test_a_word_that_asks_is_drawn_to_images_that_have_what_it_names_and_to_no_others(boundary):
    """ "Red" (asked for) and "stripes" (asked away): which of four images have them, and of one nothing is known."""
    torch.manual_seed(0)
    words = torch.nn.functional.normalize(torch.randn(1, 3, 8), dim=-1)
    regions = torch.nn.functional.normalize(torch.randn(4, 5, 8), dim=-1).requires_grad_()
    named = torch.tensor([[1, 0, -1]])
    fulfils = torch.tensor([[1, -1, 0, 1], [-1, -1, 0, 1]])
    losses.word_grounding_loss(boundary, words, regions, named, fulfils).backward()
    moved = -(regions.grad @ words[0].T).sum(1)  # [images, words]: which way the correspondences go
    has_red, has_stripes = moved[:, 0], moved[:, 2]
    assert (has_red[[0, 3]] > 0).all() and has_red[1] < 0 and not regions.grad[2].any()
    assert (has_stripes[[0, 1]] > 0).all() and has_stripes[3] < 0
    assert losses.word_grounding_loss(boundary, words, regions, named * 0, fulfils[:0]) == 0
