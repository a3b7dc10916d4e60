"""What is drawn for an image and what is done to it: the policies, the draws, RandAugment, mixup and cutmix."""
