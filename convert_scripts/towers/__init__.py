"""The conversion of each tower, one file a tower: fields, tensor names, resizing and intermediates."""
