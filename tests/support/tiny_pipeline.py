"""A random Stable Diffusion pipeline that runs in milliseconds."""

from __future__ import annotations

import tokenizers
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tokenizers import models, pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5EncoderModel,
)

TOKENS = 16


def build_tokenizer(length: int) -> CLIPTokenizer:
    """One token a letter, alone or at a word's end; begin and end are the last two."""
    letters = [chr(code) for code in range(33, 127)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=length)


def build_vae(side: int, **changes) -> AutoencoderKL:
    """Random weights; a latent is 2 px wide."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8), latent_channels=4, sample_size=side, norm_num_groups=4, **changes,
    ).eval()  # fmt: skip


def build_scheduler(prediction_type: str = "v_prediction", **changes) -> DDIMScheduler:
    """DDIM on Stable Diffusion's noise schedule."""
    own = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, "prediction_type": prediction_type}
    noise = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    return DDIMScheduler(**noise, **own | changes)


def build_tiny_pipeline(prediction_type: str = "v_prediction") -> StableDiffusionPipeline:
    """Random weights, always the same ones: 32 x 32 px images, 16 x 16 x 4 latents."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = build_tokenizer(TOKENS)
        text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer), hidden_size=32, intermediate_size=37, num_hidden_layers=2,
                num_attention_heads=4, max_position_embeddings=TOKENS,
                bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            )
        ).eval()  # fmt: skip
        vae = build_vae(32)
        unet = UNet2DConditionModel(
            sample_size=16, block_out_channels=(16, 32), layers_per_block=1, cross_attention_dim=32, norm_num_groups=8,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=4, use_linear_projection=True,
        ).eval()  # fmt: skip
    scheduler = build_scheduler(prediction_type)
    return StableDiffusionPipeline(vae, text, tokenizer, unet, scheduler, None, None, requires_safety_checker=False)


def build_tiny_xl() -> StableDiffusionXLPipeline:
    """The same of Stable Diffusion XL: two text encoders of 32 and 48 numbers, a pooled one of 24."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = build_tokenizer(TOKENS)
        common = {
            "vocab_size": len(tokenizer), "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4,
            "max_position_embeddings": TOKENS, "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        }  # fmt: skip
        first = CLIPTextModel(CLIPTextConfig(hidden_size=32, **common)).eval()
        second = CLIPTextModelWithProjection(CLIPTextConfig(hidden_size=48, projection_dim=24, **common)).eval()
        unet = UNet2DConditionModel(
            sample_size=16, block_out_channels=(16, 32), layers_per_block=2, cross_attention_dim=80, norm_num_groups=8,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), transformer_layers_per_block=(1, 2),
            attention_head_dim=4, use_linear_projection=True, addition_embed_type="text_time",
            addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + 24,
        ).eval()  # fmt: skip
        vae = build_vae(32)
    parts = {"text_encoder": first, "text_encoder_2": second, "tokenizer": tokenizer, "tokenizer_2": tokenizer}
    scheduler = build_scheduler("epsilon")
    return StableDiffusionXLPipeline(vae=vae, unet=unet, scheduler=scheduler, **parts, add_watermarker=False)


def build_tiny_sd3(*, t5: bool = False, **scheduler) -> StableDiffusion3Pipeline:
    """Stable Diffusion 3 with 16 x 16 latents in patches of 2 x 2.

    Args:
        t5: with a third text encoder; most people leave it out for its size.
        scheduler: settings of the flow matcher, shift 3 unless they say otherwise.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = build_tokenizer(TOKENS)
        common = {
            "vocab_size": len(tokenizer), "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4,
            "max_position_embeddings": TOKENS, "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        }  # fmt: skip
        first = CLIPTextModelWithProjection(CLIPTextConfig(hidden_size=32, projection_dim=16, **common)).eval()
        second = CLIPTextModelWithProjection(CLIPTextConfig(hidden_size=48, projection_dim=24, **common)).eval()
        third = T5EncoderModel(T5Config(vocab_size=128, d_model=96, d_kv=8, d_ff=32, num_layers=1, num_heads=2)).eval()
        transformer = SD3Transformer2DModel(
            sample_size=16, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
            num_attention_heads=4, joint_attention_dim=96, caption_projection_dim=32, pooled_projection_dim=40,
            pos_embed_max_size=16,
        ).eval()  # fmt: skip
        vae = build_vae(32, scaling_factor=1.5, shift_factor=0.06)
    parts = {"text_encoder": first, "text_encoder_2": second, "tokenizer": tokenizer, "tokenizer_2": tokenizer}
    parts |= {"text_encoder_3": third if t5 else None, "tokenizer_3": build_letters() if t5 else None}
    flow = FlowMatchEulerDiscreteScheduler(**{"shift": 3.0} | scheduler)
    pipe = StableDiffusion3Pipeline(vae=vae, transformer=transformer, scheduler=flow, **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def build_letters() -> PreTrainedTokenizerFast:
    """One token a letter, for encoders that are not CLIP's."""
    letters = ["<pad>", "</s>", "<unk>", *(chr(code) for code in range(33, 127))]
    model = tokenizers.Tokenizer(models.WordLevel({letter: i for i, letter in enumerate(letters)}, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )


def build_language_model(layers: int) -> Qwen3ForCausalLM:
    """A Qwen 3 of 16 numbers a token."""
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=128, hidden_size=16, intermediate_size=16, num_hidden_layers=layers, num_attention_heads=2,
            num_key_value_heads=1, head_dim=8, max_position_embeddings=512, tie_word_embeddings=True,
        )
    ).eval()  # fmt: skip


def build_chat_letters() -> PreTrainedTokenizerFast:
    """One token a letter, of a prompt that is wrapped as a message."""
    letters = build_letters()
    letters.chat_template = "{% for message in messages %}<{{ message['content'] }}>{% endfor %}"
    return letters


def build_tiny_flux2(**index) -> Flux2KleinPipeline:
    """Flux.2 klein of 32 px images, in patches of 4 px with 16 channels; `index` as the pipeline takes it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer = Flux2Transformer2DModel(
            in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=48, timestep_guidance_channels=16, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
        ).eval()  # fmt: skip
        vae = AutoencoderKLFlux2(
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8), latent_channels=4, sample_size=32, norm_num_groups=4, layers_per_block=1,
        ).eval()  # fmt: skip
        vae.bn.running_mean.normal_()
        vae.bn.running_var.uniform_(0.5, 2)
        text = build_language_model(27)  # it reads the states of layers 9, 18 and 27
    parts = {"vae": vae, "text_encoder": text, "tokenizer": build_chat_letters(), "transformer": transformer}
    flow = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    pipe = Flux2KleinPipeline(scheduler=flow, **parts, **index)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def build_tiny_z_image(**scheduler) -> ZImagePipeline:
    """Z-Image of 32 px images and 16 x 16 latents; shift 6, as the base model has it, unless `scheduler` says other."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer = ZImageTransformer2DModel(
            in_channels=4, dim=32, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=16,
            axes_dims=[4, 6, 6], axes_lens=[512, 64, 64],
        ).eval()  # fmt: skip
        vae = build_vae(32, scaling_factor=0.4, shift_factor=0.1)
        text = build_language_model(2)
    parts = {"vae": vae, "text_encoder": text, "tokenizer": build_chat_letters(), "transformer": transformer}
    pipe = ZImagePipeline(scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 6.0} | scheduler), **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe
