"""Raw images in any layout: archives, folders, lists and torchvision's data sets, as a stream of members."""
