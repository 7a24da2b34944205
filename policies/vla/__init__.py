"""Vision-language-action policies: a vision-language backbone read once per observation, and a flow expert on its cache."""
