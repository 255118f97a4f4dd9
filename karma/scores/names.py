"""The one spelling of an origin model's name, by which pools, score tables and exclusions are joined."""


def canonical_model_name(name: str) -> str:
    """Return the one spelling under which an origin model's names are compared.

    Table 3 of the paper and UltraFeedback differ in capitals only ("GPT-4", "gpt-4").

    Example:
        >>> canonical_model_name(" Llama-2-7b-chat ") == canonical_model_name("llama-2-7b-chat")
        True
    """
    return name.strip().casefold()
