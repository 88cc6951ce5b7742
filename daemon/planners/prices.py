"""What a model call costs, from the price list of genai-prices (comes with pydantic-ai; no network) or from the configuration."""

from __future__ import annotations

from perdure.daemon.config import ModelConfig

PER = 1_000_000


def price_usd(config: ModelConfig, input_tokens: int, output_tokens: int) -> float | None:
    """USD for one call; None where nobody knows the price. A local model costs nothing."""
    if config.prices is not None:
        return (config.prices.input * input_tokens + config.prices.output * output_tokens) / PER
    if config.provider == "local":
        return 0.0
    from genai_prices import Usage, calc_price  # the price list takes 0.1 s to load

    usage = Usage(input_tokens=input_tokens, output_tokens=output_tokens)
    try:
        if config.base_url is not None:
            price = calc_price(usage, config.name, provider_api_url=config.base_url)
        else:
            price = calc_price(usage, config.name, provider_id=config.provider)
    except LookupError:
        return None
    return float(price.total_price)
