"""Features, logits and counts of timm, torchvision and transformers, from the files they write."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from peers import peer

from calmoe_jax import nn
from calmoe_jax.data import load_tokenizer

pytestmark = [pytest.mark.peers, pytest.mark.every_case]

RNG = np.random.RandomState(0)
SMALL_VIT = {"patch_size": 8, "width": 32, "depth": 3, "heads": 4, "mlp_width": 64}
SMALL_BERT = {"width": 32, "depth": 2, "heads": 4, "mlp_width": 64}


@pytest.fixture(scope="module")
def torch():
    return peer("torch")


def written(torch, model, path, seed=0):
    """The model with random numbers in all its weights, and the file of them."""
    rng = np.random.RandomState(seed)
    state = model.state_dict()
    for name, tensor in state.items():
        if tensor.is_floating_point():
            x = 0.02 * rng.randn(*tensor.shape)
            if name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
                x = 1 + np.abs(x)
            state[name] = torch.tensor(x, dtype=torch.float32)
    model.load_state_dict(state)
    peer("safetensors.torch").save_file(state, path)
    return model.eval()


def ours(backbone, inputs, **options):
    """Features by a compiled program."""
    graph, state = nnx.split(backbone)
    found = jax.jit(lambda state: nnx.merge(graph, state)(inputs, **options))(state)
    return found if isinstance(found, jax.Array) else found.values


def assert_alike(found, features, head, logits):
    """Features, and the logits that the peer's own head makes of ours."""
    features, logits, weight, bias = (
        x.detach().numpy() for x in (features, logits, head.weight, head.bias)
    )
    np.testing.assert_allclose(found, features, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(np.asarray(found) @ weight.T + bias, logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_resnet18(torch, library, tmp_path):
    if library == "timm":
        model = peer("timm").create_model("resnet18", num_classes=5)
    else:
        model = peer("torchvision").models.resnet18(num_classes=5)
    model = written(torch, model, tmp_path / "net.safetensors")
    net = nn.ResNet18(3, stem="imagenet", rngs=nnx.Rngs(0))
    nn.load_pretrained(net, tmp_path / "net.safetensors")
    head = model.fc
    number = sum(p.numel() for p in model.parameters()) - head.weight.numel() - head.bias.numel()
    assert nn.count_parameters(net) == number == 11_176_512
    images = RNG.randn(3, 65, 50, 3).astype(np.float32)
    theirs = torch.tensor(images.transpose(0, 3, 1, 2))
    for train in (False, True):  # training normalises by the batch
        model.train(train)
        logits = model(theirs)
        model.fc = torch.nn.Identity()
        features = model(theirs)
        model.fc = head
        assert_alike(ours(net, jnp.asarray(images), train=train), features, head, logits)


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_vision_transformers(torch, library, tmp_path):
    if library == "timm":
        model = peer("timm").models.VisionTransformer(
            img_size=(32, 32), patch_size=8, embed_dim=32, depth=3, num_heads=4, mlp_ratio=2,
            num_classes=5,
        )  # fmt: skip
        head = model.head
    else:
        model = peer("torchvision").models.VisionTransformer(
            image_size=32, patch_size=8, num_layers=3, num_heads=4, hidden_dim=32, mlp_dim=64,
            num_classes=5,
        )  # fmt: skip
        head = model.heads.head
    model = written(torch, model, tmp_path / "net.safetensors")
    net = nn.ViT((32, 32, 3), **SMALL_VIT, rngs=nnx.Rngs(0))
    nn.load_pretrained(net, tmp_path / "net.safetensors")
    images = RNG.randn(3, 32, 32, 3).astype(np.float32)
    theirs = torch.tensor(images.transpose(0, 3, 1, 2))
    logits = model(theirs)
    if library == "timm":
        model.head = torch.nn.Identity()
    else:
        model.heads = torch.nn.Identity()
    assert_alike(ours(net, jnp.asarray(images)), model(theirs), head, logits)


def test_the_count_of_the_published_vision_transformer(torch):
    with torch.device("meta"):
        models = [
            peer("timm").create_model("vit_base_patch16_224", num_classes=0),
            peer("torchvision").models.vit_b_16(num_classes=1),
        ]
    counts = [sum(p.numel() for p in model.parameters()) for model in models]
    abstract = nnx.eval_shape(lambda: nn.ViT.of_size("B/16", (224, 224, 3), rngs=nnx.Rngs(0)))
    assert nn.count_parameters(abstract) == counts[0] == counts[1] - 769 == 85_798_656


def bert_config(**options):
    sizes = {"vocab_size": 50, "max_position_embeddings": 12, "dim": 32, "n_layers": 2}
    config = peer("transformers").DistilBertConfig
    return config(**sizes | {"n_heads": 4, "hidden_dim": 64} | options)


@pytest.mark.parametrize("kind", ["DistilBertModel", "DistilBertForSequenceClassification"])
def test_distilbert(torch, kind, tmp_path):
    transformers = peer("transformers")
    model = written(torch, getattr(transformers, kind)(bert_config()), tmp_path / "net.safetensors")
    net = nn.DistilBERT(50, 12, **SMALL_BERT, rngs=nnx.Rngs(0))
    loaded = nn.load_pretrained(net, tmp_path / "net.safetensors")
    assert len(loaded.left_out) == (4 if "For" in kind else 0)
    ids, mask = RNG.randint(0, 50, (4, 9)), np.arange(9) < np.array([9, 5, 2, 1])[:, None]
    given = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask.astype(int))}
    bert = getattr(model, "distilbert", model)
    features = bert(**given).last_hidden_state[:, 0].detach().numpy()
    inputs = {"ids": jnp.asarray(ids), "mask": jnp.asarray(mask)}
    found = np.asarray(ours(net, inputs))
    np.testing.assert_allclose(found, features, rtol=1e-4, atol=1e-4)
    if "For" in kind:
        with torch.no_grad():
            logits = model(**given).logits.numpy()
            own = model.classifier(torch.relu(model.pre_classifier(torch.tensor(found)))).numpy()
        np.testing.assert_allclose(own, logits, rtol=1e-4, atol=1e-4)


def test_a_model_saved_by_transformers_itself(torch, tmp_path):
    """With its own metadata, and the names that it chooses to write."""
    torch.manual_seed(0)
    model = peer("transformers").DistilBertForMaskedLM(bert_config()).eval()
    model.save_pretrained(tmp_path)
    net = nn.DistilBERT(50, 12, **SMALL_BERT, rngs=nnx.Rngs(0))
    loaded = nn.load_pretrained(net, tmp_path / "model.safetensors")
    assert all(name.startswith("vocab_") for name in loaded.left_out)
    ids = RNG.randint(0, 50, (2, 9))
    features = model.distilbert(torch.tensor(ids)).last_hidden_state[:, 0].detach().numpy()
    found = ours(net, {"ids": jnp.asarray(ids), "mask": jnp.ones((2, 9), bool)})
    np.testing.assert_allclose(found, features, rtol=1e-4, atol=1e-4)


def test_the_count_of_the_published_distilbert(torch):
    transformers = peer("transformers")
    with torch.device("meta"):
        model = transformers.DistilBertModel(transformers.DistilBertConfig())
    abstract = nnx.eval_shape(lambda: nn.DistilBERT.of_size("base", rngs=nnx.Rngs(0)))
    count = sum(p.numel() for p in model.parameters())
    assert nn.count_parameters(abstract) == count == 66_362_880


def test_tokens(tmp_path):
    letters = list("abcdefghij0123456789.,!?'-éÉß中")
    words = ["the", "cat", "sat", "##s", "##ing", "un", "##able", "cafe", "ss"]
    pieces = [f"##{letter}" for letter in letters[:12]]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *letters, *pieces]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peer("transformers").BertTokenizer(str(tmp_path / "vocab.txt"))
    rng = np.random.RandomState(1)
    parts = [*words[:3], "cats", "unable", "Café", "\t", "\n", "[SEP]", "中", "x" * 120, *letters]
    texts = ["", " ", *(" ".join(rng.choice(parts, rng.randint(1, 30))) for _ in range(200))]
    want = theirs(texts, padding="max_length", truncation=True, max_length=16)
    found = load_tokenizer(tmp_path / "vocab.txt", max_length=16)(texts)
    np.testing.assert_array_equal(found["ids"], want["input_ids"])
    np.testing.assert_array_equal(found["mask"], want["attention_mask"])
