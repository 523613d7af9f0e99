"""The same weights under other libraries' names: written out by hand from their documentation, independent of the tables."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

State = Mapping[str, torch.Tensor]


def _packed(
    state: State, block: str, leaf: str, names: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
) -> torch.Tensor:
    return torch.cat([state[f"{block}.{name}.{leaf}"] for name in names])


def _resblocks(state: State, theirs: str, prefix: str, count: int) -> dict[str, torch.Tensor]:
    out = {}
    for block in range(count):
        old, new = f"{theirs}.encoder.layers.{block}", f"{prefix}transformer.resblocks.{block}"
        for leaf in ("weight", "bias"):
            out[f"{new}.ln_1.{leaf}"] = state[f"{old}.layer_norm1.{leaf}"]
            out[f"{new}.ln_2.{leaf}"] = state[f"{old}.layer_norm2.{leaf}"]
            out[f"{new}.attn.in_proj_{leaf}"] = _packed(state, f"{old}.self_attn", leaf)
            out[f"{new}.attn.out_proj.{leaf}"] = state[f"{old}.self_attn.out_proj.{leaf}"]
            out[f"{new}.mlp.c_fc.{leaf}"] = state[f"{old}.mlp.fc1.{leaf}"]
            out[f"{new}.mlp.c_proj.{leaf}"] = state[f"{old}.mlp.fc2.{leaf}"]
    return out


def open_clip_from_clip(state: State, image_blocks: int, text_blocks: int) -> dict[str, torch.Tensor]:
    """OpenAI's and open_clip's CLIP; projections are stored [in, out]."""
    out = {
        "visual.class_embedding": state["vision_model.embeddings.class_embedding"],
        "visual.conv1.weight": state["vision_model.embeddings.patch_embedding.weight"],
        "visual.positional_embedding": state["vision_model.embeddings.position_embedding.weight"],
        "visual.proj": state["visual_projection.weight"].T,
        "token_embedding.weight": state["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": state["text_model.embeddings.position_embedding.weight"],
        "text_projection": state["text_projection.weight"].T,
        "logit_scale": state["logit_scale"],
    }
    for leaf in ("weight", "bias"):
        out[f"visual.ln_pre.{leaf}"] = state[f"vision_model.pre_layrnorm.{leaf}"]
        out[f"visual.ln_post.{leaf}"] = state[f"vision_model.post_layernorm.{leaf}"]
        out[f"ln_final.{leaf}"] = state[f"text_model.final_layer_norm.{leaf}"]
    out |= _resblocks(state, "vision_model", "visual.", image_blocks)
    out |= _resblocks(state, "text_model", "", text_blocks)
    return {name: tensor.detach().clone().contiguous() for name, tensor in out.items()}


def _timm_blocks(state: State, old: str, new: str, block: int) -> dict[str, torch.Tensor]:
    out = {}
    for leaf in ("weight", "bias"):
        out[f"{new}.norm1.{leaf}"] = state[f"{old}.layer_norm1.{leaf}"]
        out[f"{new}.norm2.{leaf}"] = state[f"{old}.layer_norm2.{leaf}"]
        out[f"{new}.attn.qkv.{leaf}"] = _packed(state, f"{old}.self_attn", leaf)
        out[f"{new}.attn.proj.{leaf}"] = state[f"{old}.self_attn.out_proj.{leaf}"]
        out[f"{new}.mlp.fc1.{leaf}"] = state[f"{old}.mlp.fc1.{leaf}"]
        out[f"{new}.mlp.fc2.{leaf}"] = state[f"{old}.mlp.fc2.{leaf}"]
    return out


def timm_from_clip(state: State, image_blocks: int) -> dict[str, torch.Tensor]:
    """timm's CLIP image tower: the projection is a Linear called `head`."""
    vision = "vision_model"
    out = {
        "cls_token": state[f"{vision}.embeddings.class_embedding"][None, None],
        "pos_embed": state[f"{vision}.embeddings.position_embedding.weight"][None],
        "patch_embed.proj.weight": state[f"{vision}.embeddings.patch_embedding.weight"],
        "head.weight": state["visual_projection.weight"],
    }
    for leaf in ("weight", "bias"):
        out[f"norm_pre.{leaf}"] = state[f"{vision}.pre_layrnorm.{leaf}"]
        out[f"norm.{leaf}"] = state[f"{vision}.post_layernorm.{leaf}"]
    for block in range(image_blocks):
        out |= _timm_blocks(state, f"{vision}.encoder.layers.{block}", f"blocks.{block}", block)
    return {name: tensor.detach().clone().contiguous() for name, tensor in out.items()}


def timm_from_siglip(state: State, image_blocks: int) -> dict[str, torch.Tensor]:
    """timm's SigLIP image tower: the probe's query apart, key and value packed."""
    width = state["vision_model.post_layernorm.weight"].shape[0]
    head = "vision_model.head"
    out = {
        "pos_embed": state["vision_model.embeddings.position_embedding.weight"][None],
        "attn_pool.latent": state[f"{head}.probe"],
    }
    for leaf in ("weight", "bias"):
        out[f"patch_embed.proj.{leaf}"] = state[f"vision_model.embeddings.patch_embedding.{leaf}"]
        out[f"norm.{leaf}"] = state[f"vision_model.post_layernorm.{leaf}"]
        packed = state[f"{head}.attention.in_proj_{leaf}"]
        out[f"attn_pool.q.{leaf}"], out[f"attn_pool.kv.{leaf}"] = packed[:width], packed[width:]
        out[f"attn_pool.proj.{leaf}"] = state[f"{head}.attention.out_proj.{leaf}"]
        out[f"attn_pool.norm.{leaf}"] = state[f"{head}.layernorm.{leaf}"]
        out[f"attn_pool.mlp.fc1.{leaf}"] = state[f"{head}.mlp.fc1.{leaf}"]
        out[f"attn_pool.mlp.fc2.{leaf}"] = state[f"{head}.mlp.fc2.{leaf}"]
    for block in range(image_blocks):
        out |= _timm_blocks(state, f"vision_model.encoder.layers.{block}", f"blocks.{block}", block)
    return {name: tensor.detach().clone().contiguous() for name, tensor in out.items()}


def open_clip_from_siglip(state: State, image_blocks: int, text_blocks: int) -> dict[str, torch.Tensor]:
    """open_clip's SigLIP; the text projection is a Linear here, [out, in]."""
    out = {f"visual.trunk.{name}": tensor for name, tensor in timm_from_siglip(state, image_blocks).items()}
    out |= {
        "text.token_embedding.weight": state["text_model.embeddings.token_embedding.weight"],
        "text.positional_embedding": state["text_model.embeddings.position_embedding.weight"],
        "text.text_projection.weight": state["text_model.head.weight"],
        "text.text_projection.bias": state["text_model.head.bias"],
        "text.ln_final.weight": state["text_model.final_layer_norm.weight"],
        "text.ln_final.bias": state["text_model.final_layer_norm.bias"],
        "logit_scale": state["logit_scale"].reshape(()),
        "logit_bias": state["logit_bias"].reshape(()),
    }
    out |= _resblocks(state, "text_model", "text.", text_blocks)
    return {name: tensor.detach().clone().contiguous() for name, tensor in out.items()}


def meta_from_dinov2(state: State, blocks: int) -> dict[str, torch.Tensor]:
    """Meta's DINOv2, from transformers' names in memory."""
    out = {
        "cls_token": state["embeddings.cls_token"],
        "pos_embed": state["embeddings.position_embeddings"],
        "mask_token": state["embeddings.mask_token"],
    }
    if "embeddings.register_tokens" in state:
        out["register_tokens"] = state["embeddings.register_tokens"]
    for leaf in ("weight", "bias"):
        out[f"patch_embed.proj.{leaf}"] = state[f"embeddings.patch_embeddings.projection.{leaf}"]
        out[f"norm.{leaf}"] = state[f"layernorm.{leaf}"]
    for block in range(blocks):
        old, new = f"encoder.layer.{block}", f"blocks.{block}"
        out[f"{new}.ls1.gamma"] = state[f"{old}.layer_scale1.lambda1"]
        out[f"{new}.ls2.gamma"] = state[f"{old}.layer_scale2.lambda1"]
        for leaf in ("weight", "bias"):
            out[f"{new}.norm1.{leaf}"] = state[f"{old}.norm1.{leaf}"]
            out[f"{new}.norm2.{leaf}"] = state[f"{old}.norm2.{leaf}"]
            out[f"{new}.attn.qkv.{leaf}"] = _packed(state, f"{old}.attention", leaf)
            out[f"{new}.attn.proj.{leaf}"] = state[f"{old}.attention.o_proj.{leaf}"]
            if f"{old}.mlp.gate_proj.{leaf}" in state:
                out[f"{new}.mlp.w12.{leaf}"] = _packed(state, f"{old}.mlp", leaf, ("gate_proj", "up_proj"))
                out[f"{new}.mlp.w3.{leaf}"] = state[f"{old}.mlp.down_proj.{leaf}"]
            else:
                out[f"{new}.mlp.fc1.{leaf}"] = state[f"{old}.mlp.fc1.{leaf}"]
                out[f"{new}.mlp.fc2.{leaf}"] = state[f"{old}.mlp.fc2.{leaf}"]
    return {name: tensor.detach().clone().contiguous() for name, tensor in out.items()}


def timm_from_meta(meta: State) -> dict[str, torch.Tensor]:
    """timm's DINOv2: with registers the class token carries its position, and the table loses its first row."""
    out = {
        name.replace("w12", "fc1").replace("w3", "fc2"): tensor for name, tensor in meta.items() if name != "mask_token"
    }
    if "register_tokens" in out:
        out["reg_token"] = out.pop("register_tokens")
        out["cls_token"] = out["cls_token"] + out["pos_embed"][:, :1]
        out["pos_embed"] = out["pos_embed"][:, 1:].contiguous()
    return out


def flax_from_clip(state: State) -> dict:
    """The tree of transformers 4's FlaxCLIPModel: kernels [in, out], convolutions HWIO, norms `scale`, tables `embedding`."""
    tree: dict = {}
    for name, tensor in state.items():
        if name.endswith("position_ids"):
            continue
        *parents, leaf = name.split(".")
        array = tensor.detach().numpy()
        if leaf == "weight":
            if array.ndim == 4:
                leaf, array = "kernel", array.transpose(2, 3, 1, 0)
            elif array.ndim == 1:
                leaf = "scale"
            elif parents[-1].endswith("_embedding"):
                leaf = "embedding"
            else:
                leaf, array = "kernel", array.T
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = np.array(array)  # flax refuses views that are not contiguous
    return tree


def big_vision_from_siglip(state: State, image_blocks: int, text_blocks: int, heads: int) -> dict[str, np.ndarray]:
    """big_vision's SigLIP, a block at a time: kernels [in, heads, head], positions [1, N, D], `t` and `b` of one element."""
    arrays = {name: tensor.detach().numpy() for name, tensor in state.items()}
    out: dict[str, np.ndarray] = {}

    def dense(new: str, weight: np.ndarray, bias: np.ndarray) -> None:
        out[f"{new}/kernel"], out[f"{new}/bias"] = weight.T, bias

    def attention(
        new: str, projections: list[tuple[np.ndarray, np.ndarray]], weight: np.ndarray, bias: np.ndarray
    ) -> None:
        width = weight.shape[0]
        for name, (kernel, offset) in zip(("query", "key", "value"), projections, strict=True):
            out[f"{new}/{name}/kernel"] = kernel.T.reshape(width, heads, width // heads)
            out[f"{new}/{name}/bias"] = offset.reshape(heads, width // heads)
        out[f"{new}/out/kernel"] = weight.T.reshape(heads, width // heads, width)
        out[f"{new}/out/bias"] = bias

    def norm(new: str, old: str) -> None:
        out[f"{new}/scale"], out[f"{new}/bias"] = arrays[f"{old}.weight"], arrays[f"{old}.bias"]

    for tower, new, count in (
        ("vision_model", "img/Transformer", image_blocks),
        ("text_model", "txt/Encoder_0", text_blocks),
    ):
        for block in range(count):
            old, here = f"{tower}.encoder.layers.{block}", f"{new}/encoderblock_{block}"
            norm(f"{here}/LayerNorm_0", f"{old}.layer_norm1")
            norm(f"{here}/LayerNorm_1", f"{old}.layer_norm2")
            pairs = [
                (arrays[f"{old}.self_attn.{n}.weight"], arrays[f"{old}.self_attn.{n}.bias"])
                for n in ("q_proj", "k_proj", "v_proj")
            ]
            last = f"{old}.self_attn.out_proj"
            attention(f"{here}/MultiHeadDotProductAttention_0", pairs, arrays[f"{last}.weight"], arrays[f"{last}.bias"])
            for layer in (0, 1):
                mlp = f"{old}.mlp.fc{layer + 1}"
                dense(f"{here}/MlpBlock_0/Dense_{layer}", arrays[f"{mlp}.weight"], arrays[f"{mlp}.bias"])
    norm("img/Transformer/encoder_norm", "vision_model.post_layernorm")
    norm("txt/Encoder_0/encoder_norm", "text_model.final_layer_norm")
    embeddings, head = "vision_model.embeddings", "vision_model.head"
    out["img/embedding/kernel"] = arrays[f"{embeddings}.patch_embedding.weight"].transpose(2, 3, 1, 0)
    out["img/embedding/bias"] = arrays[f"{embeddings}.patch_embedding.bias"]
    out["img/pos_embedding"] = arrays[f"{embeddings}.position_embedding.weight"][None]
    out["img/MAPHead_0/probe"] = arrays[f"{head}.probe"]
    packed = zip(
        np.split(arrays[f"{head}.attention.in_proj_weight"], 3),
        np.split(arrays[f"{head}.attention.in_proj_bias"], 3),
        strict=True,
    )
    attention(
        "img/MAPHead_0/MultiHeadDotProductAttention_0",
        list(packed),
        arrays[f"{head}.attention.out_proj.weight"],
        arrays[f"{head}.attention.out_proj.bias"],
    )
    norm("img/MAPHead_0/LayerNorm_0", f"{head}.layernorm")
    for layer in (0, 1):
        mlp = f"{head}.mlp.fc{layer + 1}"
        dense(f"img/MAPHead_0/MlpBlock_0/Dense_{layer}", arrays[f"{mlp}.weight"], arrays[f"{mlp}.bias"])
    out["txt/Embed_0/embedding"] = arrays["text_model.embeddings.token_embedding.weight"]
    out["txt/pos_embedding"] = arrays["text_model.embeddings.position_embedding.weight"][None]
    dense("txt/head", arrays["text_model.head.weight"], arrays["text_model.head.bias"])
    out["t"], out["b"] = arrays["logit_scale"].reshape(1), arrays["logit_bias"].reshape(1)
    return {name: np.ascontiguousarray(array) for name, array in out.items()}


def scanned(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A big_vision file as its scanned models write it: the blocks of a tower stacked in front."""
    out = {name: array for name, array in arrays.items() if "encoderblock_" not in name}
    for name in arrays:
        if "encoderblock_0/" in name:
            stack = [
                arrays[other]
                for other in (name.replace("encoderblock_0/", f"encoderblock_{block}/") for block in range(99))
                if other in arrays
            ]
            out[name.replace("encoderblock_0/", "encoderblock/")] = np.stack(stack)
    return out


def meta_from_dinov3(state: State, blocks: int) -> dict[str, torch.Tensor]:
    """Meta's DINOv3, from transformers' names in memory: a bias of keys that its mask hides, periods rounded to bfloat16."""
    width, prefix = state["norm.weight"].shape[0], "model.layer"
    out = {
        "cls_token": state["embeddings.cls_token"],
        "storage_tokens": state["embeddings.register_tokens"],
        "mask_token": state["embeddings.mask_token"],
        "rope_embed.periods": (100 ** (torch.arange(16) / 16)).to(torch.bfloat16),  # heads of 64
    }
    for leaf in ("weight", "bias"):
        out[f"patch_embed.proj.{leaf}"] = state[f"embeddings.patch_embeddings.{leaf}"]
        out[f"norm.{leaf}"] = state[f"norm.{leaf}"]
    for block in range(blocks):
        old, new = f"{prefix}.{block}", f"blocks.{block}"
        out[f"{new}.ls1.gamma"] = state[f"{old}.layer_scale1.lambda1"]
        out[f"{new}.ls2.gamma"] = state[f"{old}.layer_scale2.lambda1"]
        out[f"{new}.attn.qkv.weight"] = _packed(state, f"{old}.attention", "weight")
        if f"{old}.attention.q_proj.bias" in state:
            query, value = (state[f"{old}.attention.{name}_proj.bias"] for name in "qv")
            out[f"{new}.attn.qkv.bias"] = torch.cat([query, torch.full((width,), 7.0), value])
            out[f"{new}.attn.qkv.bias_mask"] = torch.cat([torch.ones(width), torch.zeros(width), torch.ones(width)])
        for leaf in ("weight", "bias"):
            out[f"{new}.norm1.{leaf}"] = state[f"{old}.norm1.{leaf}"]
            out[f"{new}.norm2.{leaf}"] = state[f"{old}.norm2.{leaf}"]
            out[f"{new}.attn.proj.{leaf}"] = state[f"{old}.attention.o_proj.{leaf}"]
            gated = f"{old}.mlp.gate_proj.{leaf}" in state
            names = {"gate": "w1", "up": "w2", "down": "w3"} if gated else {"up": "fc1", "down": "fc2"}
            for theirs, meta in names.items():
                out[f"{new}.mlp.{meta}.{leaf}"] = state[f"{old}.mlp.{theirs}_proj.{leaf}"]
    return {name: tensor.detach().clone().contiguous() for name, tensor in out.items()}


def timm_from_meta_dinov3(meta: State) -> dict[str, torch.Tensor]:
    """timm's DINOv3: biases of query and value apart, the gate beside `fc1_x`, nothing of positions."""
    renamed = {"storage_tokens": "reg_token", "ls1.gamma": "gamma_1", "ls2.gamma": "gamma_2"}
    renamed |= {"mlp.w1": "mlp.fc1_g", "mlp.w2": "mlp.fc1_x", "mlp.w3": "mlp.fc2"}
    out = {}
    for name, tensor in meta.items():
        if name.endswith("qkv.bias"):
            query, _, value = tensor.chunk(3)
            stem = name.removesuffix("qkv.bias")
            out[f"{stem}q_bias"], out[f"{stem}v_bias"] = query.clone(), value.clone()
        elif not name.endswith(("mask_token", "periods", "bias_mask")):
            for old, new in renamed.items():
                name = name.replace(old, new)
            out[name] = tensor
    return out


def timm_from_pe(state: State) -> dict[str, torch.Tensor]:
    """timm's Perception Encoder, from Meta's names: the probe's query apart, the projection a Linear."""
    renamed = {
        "conv1": "patch_embed.proj",
        "class_embedding": "cls_token",
        "positional_embedding": "pos_embed",
        "ln_pre": "norm_pre",
    }
    renamed |= {
        "transformer.resblocks.": "blocks.",
        "ln_post": "norm",
        "ln_1": "norm1",
        "ln_2": "norm2",
        "ls_1.gamma": "gamma_1",
    }
    renamed |= {
        "ls_2.gamma": "gamma_2",
        "attn.in_proj_": "attn.qkv.",
        "attn.out_proj": "attn.proj",
        "c_fc": "fc1",
        "c_proj": "fc2",
    }
    renamed |= {
        "attn_pool.attn.": "attn_pool.",
        "attn_pool.layernorm": "attn_pool.norm",
        "attn_pool.probe": "attn_pool.latent",
    }
    out: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        if not name.startswith("visual."):
            continue
        name = name.removeprefix("visual.")
        for old, new in renamed.items():
            name = name.replace(old, new)
        if name.startswith("attn_pool.qkv."):
            leaf = name.rpartition(".")[2]
            out[f"attn_pool.q.{leaf}"], out[f"attn_pool.kv.{leaf}"] = (
                tensor[: len(tensor) // 3],
                tensor[len(tensor) // 3 :],
            )
        elif name == "proj":
            out["head.weight"] = tensor.T
        elif name == "cls_token":
            out[name] = tensor[None, None]
        else:
            out[name] = tensor[None] if name == "pos_embed" else tensor
    return {name: tensor.detach().clone().contiguous() for name, tensor in out.items()}


def open_clip_from_pe(state: State) -> dict[str, torch.Tensor]:
    """open_clip's Perception Encoder: timm's trunk, and the text tower below a word of its own."""
    out = {f"visual.trunk.{name}": tensor for name, tensor in timm_from_pe(state).items()}
    texts = {name: tensor for name, tensor in state.items() if not name.startswith("visual.")}
    return out | {name if name == "logit_scale" else f"text.{name}": tensor for name, tensor in texts.items()}


def tips_from_transformers(
    state: State, blocks: int, heads: int, gated: bool
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The two files of a TIPS in JAX, pictures and texts, from transformers' TIPSv2 whose LayerScale is one: kernels [in, heads, head],
    both class tokens in one tensor, positions a square of patches alone."""
    arrays = {name: tensor.detach().numpy() for name, tensor in state.items()}
    pictures: dict[str, np.ndarray] = {}
    texts: dict[str, np.ndarray] = {}

    def norm(out: dict[str, np.ndarray], new: str, old: str) -> None:
        out[f"{new}/scale"], out[f"{new}/bias"] = arrays[f"{old}.weight"], arrays[f"{old}.bias"]

    def dense(
        out: dict[str, np.ndarray], new: str, old: str, kernel: tuple[int, ...] = (), bias: tuple[int, ...] = (-1,)
    ) -> None:
        weight = arrays[f"{old}.weight"].T
        out[f"{new}/kernel"] = weight.reshape(kernel or weight.shape)
        out[f"{new}/bias"] = arrays[f"{old}.bias"].reshape(bias)

    gate, plain = ("gate_proj", "up_proj", "down_proj"), ("fc1", "fc2")
    towers = (
        (
            pictures,
            "vision_model.encoder.layer",
            "encoder/",
            ("norm1", "norm2"),
            "attention",
            "o_proj",
            gate if gated else plain,
        ),
        (texts, "text_model.encoder.layers", "", ("layer_norm1", "layer_norm2"), "self_attn", "out_proj", plain),
    )
    for out, old, new, norms, attention, last, layers in towers:
        for block in range(blocks):
            theirs, here = f"{old}.{block}", f"{new}transformer/encoderblock_{block}"
            for number, name in enumerate(norms):
                norm(out, f"{here}/LayerNorm_{number}", f"{theirs}.{name}")
            mixed = f"{here}/MultiHeadDotProductAttention_0"
            width = len(arrays[f"{theirs}.{attention}.q_proj.bias"])
            for name in ("query", "key", "value"):
                dense(
                    out,
                    f"{mixed}/{name}",
                    f"{theirs}.{attention}.{name[0]}_proj",
                    (width, heads, width // heads),
                    (heads, -1),
                )
            dense(out, f"{mixed}/out", f"{theirs}.{attention}.{last}", (heads, width // heads, width))
            mlp = "FFNSwiGluFused_0" if layers is gate else "MlpBlock_0"
            for number, name in enumerate(layers):
                dense(out, f"{here}/{mlp}/Dense_{number}", f"{theirs}.mlp.{name}")
    embeddings, tokens = "vision_model.embeddings", "encoder/ToTokenSequence_0"
    table = arrays[f"{embeddings}.position_embeddings"][:, 1:]
    side = round(table.shape[1] ** 0.5)
    pictures[f"{tokens}/posembed_input"] = table.reshape(1, side, side, -1)
    pictures[f"{tokens}/cls"] = np.concatenate(
        [arrays[f"{embeddings}.{name}"] for name in ("cls_token", "register_tokens")], axis=1
    )
    pictures[f"{tokens}/embedding/kernel"] = arrays[f"{embeddings}.patch_embeddings.projection.weight"].transpose(
        2, 3, 1, 0
    )
    pictures[f"{tokens}/embedding/bias"] = arrays[f"{embeddings}.patch_embeddings.projection.bias"]
    norm(pictures, "encoder/encoder_norm", "vision_model.layernorm")
    norm(texts, "text_encoder_norm", "text_model.final_layer_norm")
    texts["token_emb/emb_var"] = arrays["text_model.embeddings.token_embedding.weight"]
    texts["temperature_contrastive"] = arrays["temperature"]
    return pictures, texts
