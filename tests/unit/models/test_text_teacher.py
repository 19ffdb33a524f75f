"""A small sentence encoder as teacher: its vectors, the run's word table, and that a run needs it no more."""

import shutil

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from nsfse.config import ModelConfig, load_config
from nsfse.models.baselines import build_model
from nsfse.models.checkpoint import load_checkpoint
from nsfse.models.pretrained import load_pretrained, resolve_config
from nsfse.models.text_teacher import TextTeacher, word_vectors
from nsfse.training.loop import train
from nsfse_runtime.errors import DataError, NotFoundError
from nsfse_runtime.inference.tokenizer import Tokenizer as Reader

WORDS = ["red", "blue", "make", "it", "rose", "the", "granddaughter", "##s", "x"]
TINY = [
    "data.options.level=easy",
    "data.options.items=64",
    "data.options.triplets=32",
    "data.validation_queries=0",
    "data.fitting_queries=20",
    "model.image_size=[32,48]",
    "model.width=16",
    "model.dim=16",
    "model.word_dim=6",
    "train.batch=16",
    "train.epochs=1",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as transformers saves one: a BERT of one small layer with random weights."""
    out = tmp_path_factory.mktemp("teacher")
    vocabulary = {word: at for at, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(out)
    torch.manual_seed(0)
    shape = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=80,
    )
    transformers.BertModel(shape, add_pooling_layer=False).save_pretrained(out)
    return out


def test_vectors_are_means_of_the_last_states_whatever_else_is_read(folder):
    teacher = TextTeacher(str(folder))
    texts = ["make it red", "blue", "the red rose"]
    together = teacher.vectors(texts)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(3))
    for text, row in zip(texts, together, strict=True):
        torch.testing.assert_close(teacher.vectors([text])[0], row)
    encoder = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        states = encoder(torch.tensor([[6, 7, 4]])).last_hidden_state[0]  # make it red
    torch.testing.assert_close(torch.nn.functional.normalize(states.mean(0), dim=0), together[0])


def test_common_words_are_whole_and_in_the_order_of_the_vocabulary(folder):
    teacher = TextTeacher(str(folder))
    assert teacher.common_words(3) == ("red", "blue", "make")
    assert teacher.common_words(100) == tuple(WORDS[:7])


def test_word_vectors_keep_what_separates_words_most(folder):
    teacher = TextTeacher(str(folder))
    whole = word_vectors(teacher, WORDS[:7], 8)
    few = word_vectors(teacher, WORDS[:7], 2)
    assert few.shape == (7, 2) and few.square().mean().item() == pytest.approx(1, rel=1e-4)
    centred = teacher.vectors(WORDS[:7]) - teacher.vectors(WORDS[:7]).mean(0)
    scale = (whole @ whole.T).trace() / (centred @ centred.T).trace()
    torch.testing.assert_close(whole @ whole.T, scale * centred @ centred.T, rtol=1e-4, atol=1e-4)
    assert (few.std(0)[0] >= few.std(0)[1]).item()


def test_a_model_reads_the_teachers_words_and_learns_their_map_alone(folder, tmp_path):
    config = ModelConfig(width=16, dim=16, word_dim=6, image_size=(32, 32), text_teacher=str(folder))
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "blue": 2, "red": 3}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.save(str(tmp_path / "tokenizer.json"))
    model = build_model(config, 4)
    load_pretrained(model, tmp_path / "tokenizer.json")
    table = model.text_encoder.embedding.weight
    expected = word_vectors(TextTeacher(str(folder)), ["blue", "red"], 6)
    torch.testing.assert_close(table[2:, : expected.shape[1]], expected)
    assert not table[:2].any() and not table.requires_grad and model.text_encoder.enter.weight.requires_grad
    plain = build_model(ModelConfig(width=16, dim=16, image_size=(32, 32)), 4).state_dict()
    assert not [name for name in plain if ".enter." in name]


def test_a_run_knows_words_that_no_text_says_and_opens_without_the_teacher(folder, tmp_path):
    teacher = tmp_path / "teacher"
    shutil.copytree(folder, teacher)
    config = load_config(overrides=[*TINY, f"model.text_teacher={teacher}"])
    before = TextTeacher(str(teacher))
    train(config, tmp_path / "run")
    shutil.rmtree(teacher)
    run = load_checkpoint(tmp_path / "run")
    reader = Reader.from_file(tmp_path / "run" / "tokenizer.json")
    assert reader.knows("granddaughter") and not reader.knows("nephew")
    words = sorted(reader.words())
    ids = [int(reader.encode([word])[0][0, 0]) for word in words]
    table = run.model.text_encoder.embedding.weight[ids]
    spread = before.vectors(words) - before.vectors(words).mean(0)
    assert torch.nn.functional.cosine_similarity(table @ table.T, spread @ spread.T).min() > 0.8


def test_what_cannot_teach_is_refused_in_one_line(folder, tmp_path):
    with pytest.raises(NotFoundError, match="no folder none"):
        TextTeacher("none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="cannot be read") as raised:
        TextTeacher(str(tmp_path / "empty"))
    assert "\n" not in str(raised.value)
    both = load_config(overrides=[f"model.text_teacher={folder}", "model.glove=x.txt"])
    with pytest.raises(DataError, match="keep one of them"):
        resolve_config(both)
