"""Networks of other libraries as `SegmentationNetwork`s, one module per library."""
