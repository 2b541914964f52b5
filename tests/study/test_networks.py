"""Networks by configuration: stems, texts, and published weights."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest

from calmoe_jax import cli, nn, study
from calmoe_jax._errors import UserError
from calmoe_jax.data import Split, Task, check_task
from calmoe_jax.study.config import ModelConfig, RunConfig, TrainConfig
from calmoe_jax.study.folder import claim_folder
from calmoe_jax.study.networks import build_network

IMAGES = np.random.RandomState(0).randint(0, 256, (4, 16, 16, 3)).astype(np.uint8)
RESNET = ModelConfig("resnet18", width=4, stages=2, stem="imagenet", experts=2)
NEW = (
    "stem", "text_size", "dropout", "attention_dropout", "pretrained", "image_size", "pixels",
)  # fmt: skip
BERT = ModelConfig("distilbert", text_size="tiny", experts=2)


@pytest.fixture
def weights(tmp_path):
    numpy = pytest.importorskip("safetensors.numpy")
    tensors = published.resnet18()
    numpy.save_file(tensors, tmp_path / "net.safetensors")
    return tmp_path / "net.safetensors"


def texts(size, length=5, seed=0):
    rng = np.random.RandomState(seed)
    ids = rng.randint(1, 30_000, (size, length)).astype(np.int32)
    return {"ids": ids, "mask": np.arange(length) < rng.randint(1, length + 1, (size, 1))}


def network(config, inputs, *, single=False):
    return build_network(config, inputs, single=single, num_classes=3)


def test_published_weights_and_their_pixels(weights):
    """With any seed, for mixture and single classifier, on the pixels of their training."""
    tensors = published.resnet18()
    config = dataclasses.replace(RESNET, pretrained=str(weights))
    want = {
        None: (IMAGES / 255 - nn.IMAGENET_PIXELS.mean) / nn.IMAGENET_PIXELS.deviation,
        "symmetric": IMAGES / 127.5 - 1,
    }
    for pixels, shown in want.items():
        built = network(dataclasses.replace(config, pixels=pixels), IMAGES, single=True)
        params, state = jax.jit(built.init)(jax.random.key(3))
        features = published.resnet18_features(shown, tensors)
        logits = features @ params["head"]["kernel"] + params["head"]["bias"][None]
        found, _ = jax.jit(partial(built.apply, train=False))(params, state, jnp.asarray(IMAGES))
        np.testing.assert_allclose(
            found.log_probs, jax.nn.log_softmax(logits), rtol=1e-3, atol=1e-3
        )
    mixture, _ = network(config, IMAGES).init(jax.random.key(3))
    stem = mixture["backbone"]["backbone"]["stem"]["kernel"]
    np.testing.assert_array_equal(stem, tensors["conv1.weight"].transpose(2, 3, 1, 0))


def test_published_weights_of_another_size_of_images(tmp_path):
    """The images are resized, then standardised as the weights expect them."""
    numpy = pytest.importorskip("safetensors.numpy")
    tensors = published.timm_vit(width=16, mlp=32, patch=4, tokens=1 + 5 * 5)
    numpy.save_file(tensors, tmp_path / "vit.safetensors")
    plain = ModelConfig("vit", vit_size="tiny", pretrained=str(tmp_path / "vit.safetensors"))
    config = dataclasses.replace(plain, image_size=20)
    images = np.random.RandomState(1).randint(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    with pytest.raises(nn.PretrainedError, match=r"pos_embed \[1, 26, 16\] instead of \[1, 65, 16"):
        network(plain, images)
    built = network(config, images, single=True)
    params, state = jax.jit(built.init)(jax.random.key(3))
    resized = jax.image.resize(images / np.float32(255), (2, 20, 20, 3), "bilinear")
    features = published.timm_vit_features(2 * resized - 1, tensors, patch=4)
    logits = features @ params["head"]["kernel"] + params["head"]["bias"][None]
    found, _ = jax.jit(partial(built.apply, train=False))(params, state, jnp.asarray(images))
    np.testing.assert_allclose(found.log_probs, jax.nn.log_softmax(logits), rtol=1e-3, atol=1e-3)


def test_images_are_resized_only_where_asked():
    """Without, and with their own size, the network is what it was; the weights are the same."""
    sizes = {"backbone": "resnet18", "width": 4, "stages": 2, "experts": 2}
    nets = [network(ModelConfig(**sizes, image_size=size), IMAGES) for size in (None, 16, 8)]
    found = []
    for net in nets:
        params, state = jax.jit(net.init)(jax.random.key(0))
        prediction, _ = jax.jit(partial(net.apply, train=False))(params, state, IMAGES)
        found.append((jax.tree.leaves(params), prediction.log_probs))
    jax.tree.map(np.testing.assert_array_equal, found[0], found[1])
    jax.tree.map(np.testing.assert_array_equal, found[0][0], found[2][0])
    assert float(jnp.abs(found[0][1] - found[2][1]).max()) > 1e-4


def test_weights_of_another_size(weights, tmp_path):
    for changes in ({"stem": "cifar"}, {"width": 8}, {"stages": 3}):
        config = dataclasses.replace(RESNET, pretrained=str(weights), **changes)
        with pytest.raises(
            nn.PretrainedError, match=r"pretrained=.*net\.safetensors: .* this backbone"
        ):
            network(config, IMAGES)
    with pytest.raises(nn.PretrainedError, match="must be a safetensors file"):
        network(dataclasses.replace(RESNET, pretrained=str(tmp_path / "none")), IMAGES)


def test_tokens_of_text():
    inputs = texts(4)
    built = network(BERT, inputs)
    variables = jax.eval_shape(built.init, jax.random.key(0))
    found, _ = jax.eval_shape(partial(built.apply, train=True), *variables, inputs)
    assert found.log_probs.shape == (4, 3)
    assert built is network(BERT, texts(9, seed=1))  # compiled once for a length


def test_dropout_of_texts_is_in_training_only():
    """Each share alone, and none without both."""
    inputs = jax.tree.map(jnp.asarray, texts(4))
    plain = network(BERT, inputs, single=True)
    params, state = plain.init(jax.random.key(0))
    assert jax.tree.leaves(state) == []
    want, _ = plain.apply(params, {}, inputs, train=False)
    for name in ("dropout", "attention_dropout"):
        built = network(dataclasses.replace(BERT, **{name: 0.5}), inputs, single=True)
        params, state = built.init(jax.random.key(0))
        found, _ = built.apply(params, state, inputs, train=False)
        np.testing.assert_array_equal(found.log_probs, want.log_probs)
        found, _ = built.apply(params, state, inputs, train=True)
        assert float(jnp.abs(found.log_probs - want.log_probs).max()) > 1e-3


def test_inputs_that_do_not_fit():
    with pytest.raises(ValueError, match=r"backbone='distilbert' and inputs that are one array"):
        network(BERT, IMAGES)
    with pytest.raises(ValueError, match=r"inputs that are a dict of \['ids', 'tokens'\]"):
        network(BERT, {"ids": IMAGES, "tokens": IMAGES})
    with pytest.raises(
        ValueError, match=r"at least 129 positions .* got text_size='tiny', with 128"
    ):
        network(BERT, texts(2, 129))
    with pytest.raises(ValueError, match="not one array, got a dict and backbone='mlp'"):
        network(ModelConfig(), texts(2))
    with pytest.raises(
        ValueError, match=r"image_size must be a multiple of 16, .* of vit_size='B/16', got .*=100"
    ):
        network(ModelConfig("vit", vit_size="B/16", image_size=100), IMAGES)
    with pytest.raises(ValueError, match=r"not images, got backbone='vit' and inputs .*\(5,\)"):
        network(ModelConfig("vit", image_size=32), np.zeros((4, 5), np.float32))


def test_stages_follow_the_stem():
    for config, stages in (
        (ModelConfig("resnet18"), 3),
        (ModelConfig("resnet18", stem="imagenet"), 4),
        (ModelConfig("resnet18", stem="imagenet", stages=2), 2),
    ):
        assert RunConfig(model=config).to_dict()["model"]["stages"] == stages
        params = jax.eval_shape(network(config, IMAGES, single=True).init, jax.random.key(0))[0]
        assert len(params["backbone"]["blocks"]) == 2 * stages


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pretrained": "net"}, "pretrained must be for a backbone with published weights"),
        ({"pixels": "unit"}, "pixels must be for a backbone for images, got pixels='unit'"),
        ({"backbone": "distilbert", "pixels": "unit"}, "backbone='distilbert'"),
        (
            {"dropout": 0.1},
            "dropout must be 0 for a backbone other than distilbert, got dropout=0.1",
        ),
        ({"backbone": "distilbert", "attention_dropout": 1.0}, "attention_dropout must be in"),
        ({"image_size": 32}, "image_size must be for a backbone for images, got image_size=32"),
        ({"backbone": "vit", "image_size": 0}, "image_size must be at least 1, got image_size=0"),
        ({"backbone": "vit", "pixels": "raw"}, "pixels must be one of unit, imagenet, symmetric"),
        ({"stem": "mnist"}, "stem must be one of cifar, imagenet"),
        ({"text_size": "large"}, "text_size must be one of tiny, base"),
    ],
)
def test_bad_configurations(changes, message, unchecked):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**changes)


def test_a_run_is_that_of_a_files_content(weights, tmp_path):
    """The file may lie elsewhere; another one is another run."""

    def plain(path):
        return RunConfig(model=dataclasses.replace(RESNET, pretrained=str(path))).to_dict()["model"]

    (tmp_path / "moved").mkdir()
    moved = tmp_path / "moved" / weights.name
    moved.write_bytes(weights.read_bytes())
    first = plain(weights)
    assert first == plain(moved)
    assert str(tmp_path) not in str(first)
    moved.write_bytes(weights.read_bytes() + b" ")
    assert first["pretrained"] != plain(moved)["pretrained"]
    with pytest.raises(UserError, match=r"pretrained=.*none cannot be read"):
        plain(tmp_path / "none")


def test_runs_from_before_these_settings_go_on(tmp_path):
    now = RunConfig().to_dict()
    model = {n: v for n, v in now["model"].items() if n not in NEW}
    for config in (now | {"model": model}, now):
        claim_folder(tmp_path / "run", config, {}, print, defaults=now)
    other = RunConfig(model=ModelConfig(stem="imagenet", stages=3)).to_dict()
    with pytest.raises(study.RunFolderError, match=r"model\.stem is 'cifar' there and 'imagenet'"):
        claim_folder(tmp_path / "run", other, {}, print, defaults=now)
    resized = RunConfig(model=ModelConfig("vit", image_size=224)).to_dict()
    assert resized["model"]["image_size"] == 224
    plain = RunConfig(model=ModelConfig("vit")).to_dict()
    claim_folder(tmp_path / "resized", resized, {}, print, defaults=now)
    claim_folder(tmp_path / "resized", resized, {}, print, defaults=now)
    with pytest.raises(study.RunFolderError, match=r"model\.image_size is 224 there and None here"):
        claim_folder(tmp_path / "resized", plain, {}, print, defaults=now)


def test_sizes_of_images_and_dropout_are_options(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    given = ["run", "digits", "--backbone", "vit", "--vit-size", "B/16", "--image-size"]
    assert cli.main([*given, "40"]) == 2
    found = capsys.readouterr().err
    assert "--image-size must be a multiple of 16" in found
    assert "got --image-size=40" in found
    assert cli.main(["run", "digits", "--image-size", "32"]) == 2
    assert "--image-size must be for a backbone for images" in capsys.readouterr().err
    models = []

    def refuse(*_, model, **__):
        models.append(model)
        raise UserError("enough")

    monkeypatch.setattr(study.runner, "run", refuse)
    assert cli.main([*given, "224"]) != 0
    texts = ["--backbone", "distilbert", "--dropout", "0.1", "--attention-dropout", "0.2"]
    assert cli.main(["run", "digits", *texts]) != 0
    assert models == [
        ModelConfig("vit", vit_size="B/16", image_size=224),
        ModelConfig("distilbert", dropout=0.1, attention_dropout=0.2),
    ]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.exhaustive
def test_texts_are_trained_by_name(tmp_path):
    def split(name, kind, size):
        inputs = texts(size, seed=size)
        return Split(name, kind, inputs, (inputs["ids"][:, 0] % 3).astype(np.int32))

    task = check_task(
        Task(
            name="words",
            classes=("a", "b", "c"),
            train=split("train", "train", 64),
            calibration=split("calibration", "calibration", 48),
            evaluation=(split("test", "id", 40), split("later", "shift", 32)),
        )
    )
    results = study.run(
        task, ("single", "robust"), out=tmp_path / "out", seeds=1,
        model=dataclasses.replace(BERT, dropout=0.1, attention_dropout=0.1),
        train=TrainConfig(epochs=2, batch_size=32), say=lambda line: None,
    )  # fmt: skip
    assert {record.method for record in results.records} == {"single", "robust"}
