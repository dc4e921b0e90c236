"""Published attention patterns by their names: one function a system, each an ordinary pattern that prints and parses.

Every docstring gives the source, the parameters with the published defaults, and the trap.  `registry.ENTRIES` lists them all;
docs/zoo.md shows them.
"""

from patternc.structured import neighborhood
from patternc.zoo.bigbird import bigbird, bigbird_etc, bigbird_plan, etc
from patternc.zoo.linear import performer, rattention
from patternc.zoo.models import gemma2, gemma3, gpt_neo, gpt_oss, llama4, mistral, modernbert, of_layers
from patternc.zoo.packing import image_blocks, packed, prefix_lm
from patternc.zoo.sparse import biblosan, blockbert, blockwise, fixed, overlapping_blocks, reformer_local, routing_local, s2_attn, strided
from patternc.zoo.windows import lm_infinite, longformer, longt5_local, sliding_window, streaming_llm
