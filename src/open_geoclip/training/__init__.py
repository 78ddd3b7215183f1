"""Training: contrastive alignment of the image head with the location encoder."""
