"""Which names hold secrets, judged word by word: what redaction and error messages hide.

Only names are judged here; values and environment variables are the business of ``redaction``. No other import of the
package, so that every file of this room may ask.
"""

import re

__all__ = ["is_secret_name"]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ALWAYS = _words(
    "secret secrets password passwords passwd passphrase pwd credential credentials authorization "
    "apikey apikeys apitoken authkey authtoken accesskey accesstoken secretkey privatekey hubtoken"
)
# `key` and `token` are also words of deep learning: what stands before them decides.
_KEY_IS_HARMLESS_AFTER = _words(
    "batch data dict feature full group image input key label labels log logging map metric monitor num output "
    "primary public query sort state sub target value"
)
_TOKEN_IS_HARMLESS_AFTER = _words(
    "bos class cls dist distill distillation eos eot image mask max min next num pad patch per prefix register sep "
    "special text unk vocab"
)
_PLURAL_IS_SECRET_AFTER = _words("access api auth bearer hf hub private secret session ssh wandb")
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


def is_secret_name(name: str) -> bool:
    """Whether a key or an environment variable of this name holds a secret.

    The last word decides (``api_key``, ``WANDB_API_KEY``, ``hubToken``), so that ``tokenizer``, ``num_tokens``,
    ``key_dim`` and ``password_file`` stay readable; words of deep learning before it (``class_token``,
    ``monitor_key``) make it harmless.

    Args:
        name: One key, without the path that leads to it.

    Example:
        >>> [name for name in ("api_key", "hubToken", "DB_PASSWORD", "class_token", "keyboard") if is_secret_name(name)]
        ['api_key', 'hubToken', 'DB_PASSWORD']
    """
    words = [word.lower() for word in _WORD.findall(name)]
    while words and words[-1].isdigit():  # api_key_2
        words.pop()
    if not words:
        return False
    last, before = words[-1], words[-2] if len(words) > 1 else ""
    if last in _ALWAYS:
        return True
    if last == "key":
        return before not in _KEY_IS_HARMLESS_AFTER
    if last == "token":
        return before not in _TOKEN_IS_HARMLESS_AFTER
    return last in {"keys", "tokens"} and before in _PLURAL_IS_SECRET_AFTER
