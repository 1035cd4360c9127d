"""What other training tools call our settings: timm, ultralytics, Lightning, Hugging Face's Trainer, fastai.

A name with the same meaning and the same values is a synonym, accepted wherever a setting is. Any other known name is
answered with what to use instead.
"""

from __future__ import annotations

from collections.abc import Mapping

from vitctl.errors import RequestError


def _by_name(rows: Mapping[str, str]) -> dict[str, str]:
    return {name: value for names, value in rows.items() for name in names.split()}


SYNONYMS = _by_name(
    {
        "model arch architecture network model_name model_type": "net",
        "optimizer optim": "opt",
        "learning_rate learn_rate lr0 max_lr": "lr",
        "wd": "weight_decay",
        "batch train_batch_size per_device_train_batch_size": "bs",
        "max_epochs num_epochs num_train_epochs": "epochs",
        "max_iters num_steps num_train_steps total_steps iterations": "max_steps",
        "imgsz img_size image_size": "size",
        "dataset_name": "dataset",
        "seed_everything manual_seed random_seed": "seed",
        "grad_accum_steps gradient_accumulation_steps accumulate_grad_batches accum_iter accum_steps": "accumulate",
        "max_grad_norm gradient_clip_val grad_clip clip_grad_norm": "clip_grad",
        "smoothing label_smoothing_factor": "label_smoothing",
        "sched scheduler lr_scheduler lr_scheduler_type": "schedule",
        "warmup_ratio": "warmup",
        "lr_warmup_epochs": "warmup_epochs",
        "lr_warmup_steps num_warmup_steps warmup_iters": "warmup_steps",
        "reprob erasing random_erasing random_erase": "erase",
        "class_weight": "class_weights",
        "mixup_alpha": "mixup",
        "cutmix_alpha": "cutmix",
        "ema_decay model_ema_decay": "ema",
        "early_stopping_patience": "patience",
        "torch_compile": "compile",
        "save_steps": "save_every",
        "num_threads": "threads",
        "tensorboard_logging": "tensorboard",
    }
)
"""Settings by the names under which other tools have them with the same values."""

SWITCHES = {
    "amp": ("precision", "auto"),
    "cos": ("schedule", "cosine"),
    "noamp": ("precision", "fp32"),
    "noaug": ("aug", "basic"),
    "nowandb": ("wandb", "disabled"),
}
"""Switches of the original scripts, with the setting and value that they stand for. ``--noaug`` kept crop and flip."""

INSTEAD = _by_name(
    {
        "momentum": "use --opt sgd:momentum=0.9",
        "nesterov": "use --opt sgd:momentum=0.9,nesterov=true",
        "betas opt_betas adam_betas beta1 beta2 adam_beta1 adam_beta2": "use --opt adamw:beta1=0.9,beta2=0.999",
        "eps opt_eps adam_eps adam_epsilon": "use --opt adamw:eps=1e-8",
        "opt_kwargs optim_args": "use --opt NAME:key=value, such as --opt adan:eps=1e-8",
        "model_kwargs model_args": "use --net NAME:key=value, such as --net vit:depth=8",
        "drop dropout drop_rate dropout_rate": "use --net NAME:dropout=0.1, such as --net vit:dropout=0.1",
        "drop_path drop_path_rate stochastic_depth drop_connect": "use --net NAME:drop_path_rate=0.1, such as --net cct_4:drop_path_rate=0.1",
        "depth num_layers": "use --net vit:depth=8",
        "heads num_heads": "use --net vit:num_heads=8",
        "dim embed_dim hidden_size": "use --net vit:embed_dim=256",
        "dim_head head_dim": "use --net vit:head_dim=64",
        "patch_size": "use --net vit --patch 4",
        "input_size": "use --size 32",
        "data data_path data_root data_folder dataset_path dataset_dir root train_dir": "use --dataset FOLDER for your images, or --data-dir FOLDER for CIFAR",
        "aa auto_augment autoaugment": "use --aug autoaug, --aug randaug or --aug trivialaug",
        "randaugment rand_augment randaug": "use --aug randaug:n=2,m=9",
        "trivial_augment trivialaugment trivialaug": "use --aug trivialaug",
        "no_aug noaugment": "use --aug none",
        "color_jitter hsv_h hsv_s hsv_v degrees translate shear": "use --aug trivialaug or --aug randaug:n=2,m=9",
        "hflip fliplr horizontal_flip": "use --flip on or --flip off",
        "mixup_off_epoch close_mosaic": "use --mixup 0.8 --mix-off 0.1, a fraction of the run",
        "model_ema use_ema": "use --ema 0.999",
        "fp16 half use_amp mixed_precision": "use --precision fp16; --precision auto is the default",
        "bf16 amp_dtype": "use --precision bf16; --precision auto is the default",
        "fp32 no_amp": "use --precision fp32",
        "gpu gpus gpu_id gpu_ids num_gpus devices accelerator cuda": "use --device cuda:0",
        "mps use_mps_device": "use --device mps",
        "no_cuda use_cpu cpu": "use --device cpu",
        "dp data_parallel distributed ddp strategy num_nodes world_size local_rank sync_bn sync_batchnorm":
            "use --device cuda:0; a run uses one device",
        "val_split val_size validation_split val_ratio": "use --val-fraction 0.1",
        "cos_lr cosine": "use --schedule cosine",
        "cooldown cooldown_epochs decay_epochs": "use --schedule constant --warmdown 0.2, a fraction of the run",
        "time max_train_hours": "use --max-time 1h",
        "early_stop early_stopping": "use --patience 5",
        "output output_dir default_root_dir save_dir project": "use --runs-dir FOLDER and --name NAME",
        "experiment run_name exp_name": "use --name NAME",
        "exist_ok overwrite_output_dir": "use another --name; runs are never overwritten",
        "resume_from_checkpoint ckpt_path resume_path": "use --resume RUN with the run's folder",
        "weights checkpoint initial_checkpoint init_checkpoint finetune load pretrained_weights": "use --pretrained FILE",
        "freeze freeze_layers": "use --net vit_timm --freeze-backbone, or another pretrained network",
        "save_period save_freq save_interval save_strategy": "use --save-every 10m; every epoch is saved anyway",
        "save_total_limit checkpoint_hist save_top_k": "use --keep 3",
        "log_wandb use_wandb": "use --wandb online",
        "report_to logger": "use --wandb online or --tensorboard",
        "log_dir tensorboard_dir": "use --tensorboard, which writes to the run's folder",
        "torchcompile": "use --compile",
        "model_name_or_path": "use --net NAME, such as --net timm/resnet18",
        "fast_dev_run": "use --dry-run",
        "overfit_batches limit_train_batches max_train_samples fraction": "use --limit-train 1000, a number of images",
        "limit_val_batches limit_test_batches max_eval_samples": "use --limit-test 1000, a number of images",
        "auto_lr_find lr_find find_lr": "use --lr-finder",
        "auto_scale_batch_size auto_find_batch_size auto_batch": "run vitctl bench-device --tune",
        "gradient_checkpointing grad_checkpointing": "use --bs 32, which needs less memory",
        "eval evaluate test test_only eval_only validate do_eval": "run vitctl eval RUN",
        "predict do_predict": "run vitctl predict RUN IMAGE",
        "profile profiler": "use --dry-run, or run vitctl bench-device",
        "hparams config_file cfg yaml": "use --config FILE.yaml",
    }
)  # fmt: skip
"""Names of other tools that have no setting of the same values here: what to use."""

NOT_NEEDED = _by_name(
    {
        "workers num_workers n_workers dataloader_num_workers j pin_mem pin_memory dataloader_pin_memory persistent_workers "
        "prefetch prefetch_factor cache":
            "images are kept in memory and augmented on the device",
        "num_classes nb_classes nc classes": "classes are read from the data set",
        "in_chans in_channels channels": "channels are read from the data set",
        "loss loss_fn loss_function criterion": "classes are trained with cross-entropy",
        "mean std normalization normalize": "mean and standard deviation are measured on the training images",
        "eval_batch_size validation_batch_size val_batch_size test_batch_size per_device_eval_batch_size":
            "evaluation uses what fits into memory",
        "channels_last": "the memory layout is chosen for each network",
        "deterministic worker_seeding": "runs with equal seeds are repeatable",
        "min_lr lr_min lrf eta_min lr_end warmup_lr": "schedules start and end near 0",
        "no_wandb disable_wandb": "W&B is off unless --wandb online is given",
        "save save_model do_train train": "training and saving are the default",
        "load_best_model_at_end": "best.pt is kept; see vitctl eval RUN --weights best",
        "verbose log_interval logging_steps logging_strategy log_every_n_steps print_freq logging_dir":
            "every epoch is shown, and recorded in metrics.jsonl",
        "check_val_every_n_epoch val_check_interval eval_strategy evaluation_strategy eval_steps val_interval":
            "every epoch is evaluated; use --val none to skip it",
        "eval_metric metric_for_best_model monitor": "best.pt is chosen by held-out accuracy",
        "enable_progress_bar disable_tqdm": "progress bars are shown only in a terminal",
        "download dataset_download": "named data sets are downloaded if missing",
    }
)  # fmt: skip
"""Names of other tools for what needs no setting here: why."""


OPTION_NAMES = _by_name(
    {
        "patch_size": "patch",
        "depth num_layers": "net_options.depth",
        "heads num_heads": "net_options.num_heads",
        "dim embed_dim hidden_size": "net_options.embed_dim",
        "dim_head head_dim": "net_options.head_dim",
        "drop dropout drop_rate dropout_rate": "net_options.dropout",
        "drop_path drop_path_rate stochastic_depth drop_connect": "net_options.drop_path_rate",
        "momentum": "opt_options.momentum",
        "nesterov": "opt_options.nesterov",
        "beta1 adam_beta1": "opt_options.beta1",
        "beta2 adam_beta2": "opt_options.beta2",
        "eps opt_eps adam_eps adam_epsilon": "opt_options.eps",
    }
)
"""Names of :data:`INSTEAD` that sweep files accept, with the parameters that they set.

A range of values cannot be written as ``NAME:key=value``.
"""


def foreign_name(name: str, shown: str) -> RequestError | None:
    """Return the error for another tool's name of a setting; None for a synonym or an unknown name.

    Args:
        name: the name with underscores.
        shown: how it was written, such as ``--num-workers``.
    """
    if name in INSTEAD:
        return RequestError(f"{shown} is not a setting of vitctl", hint=INSTEAD[name])
    if name in NOT_NEEDED:
        return RequestError(f"{shown} is not needed: {NOT_NEEDED[name]}", hint=f"remove {shown}")
    return None
