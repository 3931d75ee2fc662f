"""How much an example's prompt says that the others do not."""

import math
import re
from collections import Counter
from collections.abc import Sequence


def information(prompts: Sequence[str]) -> list[float]:
    """Each prompt's InsInfo, the sum of log(N / f) over its tags: N prompts, of which f have the tag.

    Wang et al., "InsCL", NAACL 2024, arXiv 2403.11435, where GPT-4 writes the tags of an instruction; here they are its
    different words, whatever their case.
    """
    tags = [set(re.findall(r"\w+", prompt.casefold())) for prompt in prompts]
    having = Counter(tag for found in tags for tag in found)
    # In a fixed order: a sum over a set would differ in its last bits from process to process.
    return [sum(math.log(len(prompts) / having[tag]) for tag in sorted(found)) for found in tags]
