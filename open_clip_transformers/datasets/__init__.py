"""Models over whole data sets: shards of images in, shards of embeddings, captions or labels out.

`images` reads images ahead of a model, `shards` finds what there is to read, `outputs` writes shards whole, `run` and
`run_on_ray` do the work, `search` finds images by their embeddings.
"""
