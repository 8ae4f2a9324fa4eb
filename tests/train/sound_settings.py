"""Settings of the loop that pass; tests replace one or the other."""

from medfocal.train.settings import TrainerSettings

SOUND = TrainerSettings(
    max_epochs=2,
    steps_per_epoch=3,
    batch_size=1,
    accumulate=1,
    validate_every=1,
    validation_false_positives=1.0,
    patience=None,
    gradient_clip_norm=None,
    max_skipped_steps=3,
    ema_decay=None,
    prior_bias=True,
    curriculum=None,
    initial_weights=None,
    precision="auto",
    tf32=True,
    compile="auto",
    channels_last=False,
    checkpoint_activations=False,
    sharding="none",
    deterministic=True,
    checkpoint_minutes=10.0,
    num_threads=None,
    window_size=None,
    window_overlap=0.5,
    window_batch=1,
    save_test_predictions=False,
    save_validation_predictions=False,
)
