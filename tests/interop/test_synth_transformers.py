"""Random checkpoints run in transformers, with activations near one."""

from pathlib import Path

import pytest

pytestmark = pytest.mark.peers


@pytest.mark.parametrize("fixture", ["tiny_gpt_oss", "tiny_llama"])
def test_a_random_checkpoint_runs(fixture: str, request: pytest.FixtureRequest) -> None:
    torch = pytest.importorskip("torch", reason="needs the extra `peers`")
    transformers = pytest.importorskip("transformers", reason="needs the extra `peers`")
    folder: Path = request.getfixturevalue(fixture)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("The quick brown fox jumps over the lazy dog.", return_tensors="pt").input_ids
    with torch.no_grad():
        output = model(ids, output_hidden_states=True)
    assert tokenizer.eos_token_id == model.config.eos_token_id
    assert torch.isfinite(output.logits).all()
    deviations = [float(state.float().std()) for state in output.hidden_states]
    assert all(0.5 < deviation < 2 for deviation in deviations)
    assert 0.5 < float(output.logits.float().std()) < 2
