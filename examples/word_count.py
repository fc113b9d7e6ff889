"""The most common words of many files, read by threads and added up as they come.

Run it: python examples/word_count.py [folder] [--pattern "**/*.txt"] [--top 10]
"""

import argparse
import re
import sysconfig
from collections import Counter
from pathlib import Path

import plait


def count_words(path: Path) -> Counter[str]:
    """Count the words of a file; what is no valid UTF-8 is no word."""
    text = path.read_text(encoding="utf-8", errors="replace")
    return Counter(re.findall(r"[^\W\d_]{4,}", text.lower()))


standard_library = Path(sysconfig.get_path("stdlib"))
parser = argparse.ArgumentParser(description="Count the words of four letters and more.")
parser.add_argument("folder", type=Path, nargs="?", default=standard_library)
parser.add_argument("--pattern", default="*.py", help='which files to read (default: "*.py")')
parser.add_argument("--top", type=int, default=10, help="how many words to show (default: 10)")
options = parser.parse_args()

files = [path for path in options.folder.glob(options.pattern) if path.is_file()]

# Threads read several files at once and share memory: no Counter has to travel. imap()
# works a few files ahead and no more, so memory stays constant, be it a hundred files or
# a million. A sum needs no order: each Counter is taken as soon as it is there.
total: Counter[str] = Counter()
for counter in plait.imap(count_words, files, backend="threads", ordered=False):
    total.update(counter)

print(f"{total.total():,} words, {len(total):,} different ones, in {len(files)} files")
for word, count in total.most_common(options.top):
    print(f"{count:>8,}  {word}")
