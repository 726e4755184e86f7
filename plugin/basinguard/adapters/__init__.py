"""The only files that import a training framework or diffusers.

`loading` opens what the user has, `checks` refuses a bad plan before it costs anything, `images` reads the training
set, `objective` and `lora` are what `finetune.FineTune` trains and how, `finetune_cli` is `basinguard fit`.
"""
