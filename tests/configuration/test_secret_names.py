"""Names of secrets against the words of deep learning that look like them."""

import pytest

from lightning_dropout.configuration.secret_names import is_secret_name

SECRETS = (
    "key token secret password passwd api_key API_KEY WANDB_API_KEY apiKey apikey api-key wandb_key hub_token hubToken "
    "HF_TOKEN accessToken access_token auth_token GITHUB_TOKEN secret_key private_key aws_secret_access_key "
    "AWS_SECRET_ACCESS_KEY db_password DB_PASSWORD client_secret credentials credential gcp_credentials passphrase "
    "api_keys access_tokens api_key_2 authorization COMET_API_KEY neptune_api_token"
)
HARMLESS = (
    "tokenizer num_tokens max_tokens tokens keys keyboard key_dim num_key_value_heads monitor_key state_key label_key "
    "class_token cls_token mask_token pad_token bos_token token_dim token_path password_file keyword monkey turkey "
    "secretary p model dropout hockey passwords_file log_keys patch_token label_keys 3 _"
)


@pytest.mark.parametrize("name", SECRETS.split())
def test_secrets(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize("name", ["", *HARMLESS.split()])
def test_words_of_deep_learning(name: str) -> None:
    assert not is_secret_name(name)
