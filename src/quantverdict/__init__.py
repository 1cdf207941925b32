"""Which quantized build of this language model can we ship? See `quantverdict.pipeline` for the whole run."""
