"""Networks: the segmentation model, its teacher, the discriminator and the release's checkpoints."""
