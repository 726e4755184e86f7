"""The configuration of Stable Diffusion 3.5 medium, whose own files are gated: what its memory is computed from.

Source: diffusers, `scripts/convert_sd3_to_diffusers.py` and the comments of `SD3Transformer2DModel`; its CLIP encoders
are those of Stable Diffusion XL, with projections, its third is T5-v1.1-XXL (Raffel et al., arXiv 1910.10683).
"""

from basinguard.pipelines.architecture import sdxl_config

TRANSFORMER = {
    "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 24,
    "attention_head_dim": 64, "num_attention_heads": 24, "joint_attention_dim": 4096, "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048, "pos_embed_max_size": 384, "dual_attention_layers": list(range(13)),
    "qk_norm": "rms_norm",
}  # fmt: skip
T5 = {
    "vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64,
    "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
}  # fmt: skip
INDEX = {
    "_class_name": "StableDiffusion3Pipeline",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "text_encoder_3": ["transformers", "T5EncoderModel"],
    "transformer": ["diffusers", "SD3Transformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def sd35_config(name: str):
    """One of them, such as "transformer/config.json"."""
    own = {"model_index.json": INDEX, "transformer/config.json": TRANSFORMER, "text_encoder_3/config.json": T5}
    if name in own:
        return own[name]
    if name == "vae/config.json":
        quant = {"use_quant_conv": False, "use_post_quant_conv": False}
        return sdxl_config(name) | quant | {"latent_channels": 16, "scaling_factor": 1.5305, "shift_factor": 0.0609}
    return sdxl_config(name)
