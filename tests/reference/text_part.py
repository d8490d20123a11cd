"""A model of text as a part of one that sees images, too."""

import numpy as np

WHOLE = {
    "llama4_text": ("Llama4ForConditionalGeneration", "llama4", "vision_model."),
    "gemma3_text": ("Gemma3ForConditionalGeneration", "gemma3", "vision_tower."),
}
# What Gemma 3's class has without them: published settings leave such values out.
USUAL = {
    "hidden_activation": "gelu_pytorch_tanh", "attention_bias": False, "rope_theta": 1e6, "rope_local_base_freq": 1e4,
    "sliding_window_pattern": 6,
}  # fmt: skip


def of(config, tensors, new):
    """The settings and the tensors of the whole model; its other part is a stub."""
    name, kind, vision = WHOLE[config["model_type"]]
    outside = ("architectures", "torch_dtype", "dtype")
    whole = {key: config.pop(key) for key in outside if key in config}
    whole |= {"architectures": [name], "model_type": kind, "text_config": config}
    whole |= {"vision_config": {"model_type": kind + "_vision_model"}, "boi_token_index": 3, "eoi_token_index": 4, "image_token_index": 5}
    if kind == "gemma3":
        whole["mm_tokens_per_image"] = 256
        for key in [key for key, value in USUAL.items() if config.get(key) == value]:
            del config[key]
    others = {vision + "class_embedding": np.zeros((8,), np.float32), "multi_modal_projector.linear_1.weight": np.zeros((8, 8), np.float32)}
    if kind == "gemma3" and new:
        # As newer versions of transformers name them: the part stands within the model, the head beside it.
        own = {name.replace("model.", "model.language_model.", 1): values for name, values in tensors.items()}
        return whole, own | {"model." + name: values for name, values in others.items()}
    return whole, {"language_model." + name: values for name, values in tensors.items()} | others
