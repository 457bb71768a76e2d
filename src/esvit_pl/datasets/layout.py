"""What a folder of images means: which folders are splits, which are classes, and what is left out. docs/data.md has
the rules as a table, and tests/datasets/test_layout.py has the same rows.

`read_layout` looks at a `Listing` alone, never at the disk. What cannot be told is refused with both readings, and
`layout=` settles it by hand.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath

from esvit_pl.datasets.listing import EXTENSIONS, Listing, parents, same_name, shown

LAYOUTS = ("auto", "classes", "flat", "splits")
LABELS = ("auto", "folders", "none")
SPELLINGS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev", "eval"),
    "test": ("test", "testing"),
}
"""Split -> how its folder may be called, in upper or lower case, also with a word for "images" or a year."""

_SPLIT = {word: split for split, words in SPELLINGS.items() for word in words}
_IMAGES = "(?:set|split|data|dataset|images?|imgs?|photos?|pictures?)?"
_NAME = re.compile(rf"{_IMAGES}[\s_.-]*({'|'.join(_SPLIT)})[\s_.-]*{_IMAGES}[\s_.-]*(?:\d{{4}})?")


@dataclass(frozen=True)
class Part:
    """The images of one split: those that lie directly in `folders`, which lead to class numbers (None: no labels)."""

    root: str
    """Folder below the data set's root; "" is the root itself. Images are named from here."""
    folders: dict[str, int | None]


@dataclass(frozen=True)
class Layout:
    """What a folder means. Folders are named from the data set's root."""

    train: Part
    val: Part | None
    classes: list[str] | None
    reading: str
    """How the folder was read, in plain words."""
    left_out: list[str] = field(default_factory=list)
    """What is there and not read, each in plain words."""

    def notes(self) -> tuple[str, ...]:
        """The lines that a run prints."""
        return f"layout: {self.reading}", *([f"left out: {_few(self.left_out, 8)}"] if self.left_out else [])


def split_named(name: str) -> str | None:
    """The split that a folder of this name usually holds: "train", "val" or "test"; None for any other name.

    >>> [split_named(name) for name in ("Training", "val2017", "test_set", "trains")]
    ['train', 'val', 'test', None]
    """
    found = _NAME.fullmatch(name.casefold().strip())
    return _SPLIT[found[1]] if found else None


def split_in(name: str) -> str | None:
    """The split of which one word of a name speaks; None if no word does.

    >>> [split_in(name) for name in ("trainA", "val_2", "my test", "trains")]
    ['train', 'val', 'test', None]
    """
    words = re.findall("[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)
    return split_named(name) or next((_SPLIT[word.casefold()] for word in words if word.casefold() in _SPLIT), None)


def read_layout(listing: Listing, *, layout: str = "auto", labels: str = "auto") -> Layout:
    """What the listed folder means.

    Args:
        layout: "auto"; "classes": the first folders are classes, whatever their names; "flat": all images, without
            labels; "splits": the folders called train and val are splits, whatever lies beside them.
        labels: whether folders within a split are classes: "auto", "folders" or "none".

    Raises:
        ValueError: there is no image, the folder can be read in two ways, or it cannot be read as asked.
    """
    for name, value, known in (("layout", layout, LAYOUTS), ("labels", labels, LABELS)):
        if value not in known:
            raise ValueError(f"{name} must be {', '.join(map(repr, known[:-1]))} or {known[-1]!r}, got {value!r}")
    if (layout, labels) in (("classes", "none"), ("flat", "folders")):
        raise ValueError(f"layout={layout} and labels={labels} contradict each other; leave one of them out")
    labels = {"classes": "folders", "flat": "none"}.get(layout, labels)
    return _Reader(listing, layout, labels).read()


class _Reader:
    """The rules, with what they all look at: how many images lie directly in a folder, and how many below it."""

    def __init__(self, listing: Listing, layout: str, labels: str) -> None:
        self.listing, self.layout, self.labels = listing, layout, labels
        self.direct = {folder: len(names) for folder, names in listing.images.items()}
        self.below: Counter[str] = Counter()
        self.children: dict[str, list[str]] = {folder: [] for folder in self.direct}
        for folder, number in self.direct.items():
            self.below[folder] += number
            for above in parents(folder):
                self.below[above] += number
            if folder:
                self.children[folder.rpartition("/")[0]].append(folder)
        self.left_out: list[str] = []

    def read(self) -> Layout:
        if not self.below[""]:
            raise ValueError(f"no image below '{shown(self.listing.root)}': {self.missing()}")
        splits = {} if self.layout in ("classes", "flat") else self.splits()
        root = splits.get("train", "")
        if self.layout == "auto" and self.labels != "folders":
            self.refuse_splits_deeper_down(splits)
        classes, why = self.classes(root)
        numbers = None if classes is None else {same_name(name): number for number, name in enumerate(classes)}
        train = self.part(root, numbers)
        val = self.val_part(splits["val"], numbers, why) if "val" in splits else None
        self.leave_out_the_rest([root, *([val.root] if val else [])], splits)
        return Layout(train, val, classes, self.reading(splits, why), self.left_out)

    # -- splits

    def splits(self) -> dict[str, str]:
        """Split -> its folder; empty if the folder's children are no splits."""
        named: dict[str, list[str]] = {"train": [], "val": [], "test": []}
        for folder in self.filled(""):
            if (split := split_named(folder)) is not None:
                named[split].append(folder)
        splits = {split: folders[0] for split, folders in named.items() if folders}
        siblings = [folder for folder in self.filled("") if split_named(folder) is None]
        if self.layout == "auto" and not self.are_splits(splits, siblings):
            self.refuse_half_names()
            return {}
        twice = next((folders for folders in named.values() if len(folders) > 1), None)
        if twice:
            raise ValueError(
                f"{self.name()} holds {_and(f'{shown(folder)}/' for folder in twice)}, which mean the same split; "
                f"rename one of them, or take {_settle('classes', 'flat')}"
            )
        if "train" not in splits:
            raise ValueError(
                f"layout=splits needs a folder of training images in {self.name()}, called "
                f"{' or '.join(SPELLINGS['train'])}; there are {_few([f'{shown(f)}/' for f in self.children['']], 5)}"
            )
        return splits

    def are_splits(self, splits: dict[str, str], siblings: list[str]) -> bool:
        """Whether folders with names of splits are splits; the two readings are refused where it cannot be told."""
        if not splits:
            return False
        if "train" in splits and "val" in splits and self.are_strays(self.direct[""], 2, self.below[""]):
            return True
        flat = [folder for folder in siblings if self.direct[folder]]
        split_is_flat = all(self.direct[folder] for folder in splits.values())
        if split_is_flat and len(flat) > 1 and not {"train", "test"} <= splits.keys():
            return False  # car/ train/ bus/: names of classes
        if "train" in splits and self.are_strays(self.direct[""], 2, self.below[""]):
            train = splits["train"]
            holds_classes = not self.direct[train] and len(self.filled(train)) > 1
            if not siblings or (holds_classes and len(flat) == len(siblings)):
                return True
        raise self.two_readings(splits, siblings)

    def refuse_half_names(self) -> None:
        """trainA/ and testA/ are no classes, and no splits either."""
        found = {split_in(folder): folder for folder in self.filled("")}
        if "train" in found and found.keys() & {"val", "test"}:
            raise ValueError(
                f"it cannot be told what {self.name()} means ({_few([f'{shown(f)}/' for f in self.filled('')], 8)}): "
                f"these names speak of splits. Call the folders train, val and test, or give the folder to train on, "
                f"such as dataset.root={shown(self.listing.root)}/{shown(found['train'])}; {_settle('classes')} means "
                f"that all these folders are classes, and {_settle('flat')} takes all images without labels"
            )

    def two_readings(self, splits: dict[str, str], siblings: list[str]) -> ValueError:
        folders = _few([f"{shown(folder)}/" for folder in self.filled("")], 8)
        if "train" in splits:
            beside = f"{shown(splits['train'])}/ holds {_images(self.below[splits['train']])} to train on"
            first = f"{_settle('splits')} means that {beside} and what has no name of a split is left out"
        else:
            name = shown(next(iter(splits.values())))
            first = (
                f"if {name}/ is a split, then none called train lies beside it: rename the folder of the training "
                f"images, or give dataset.root={shown(self.listing.root)}/{name} to train on {name}/ itself"
            )
        if self.direct[""]:
            folders += f" and {_images(self.direct[''])} beside them"
        return ValueError(
            f"it cannot be told what {self.name()} means ({folders}): {first}; {_settle('classes')} means that all "
            f"these folders are classes, and {_settle('flat')} takes all images without labels"
        )

    def refuse_splits_deeper_down(self, splits: dict[str, str]) -> None:
        """Images of a `val` must not be trained on because it lies one folder deeper than expected."""
        for folder, children in self.children.items():
            if not folder or (splits and not _lies_in(folder, splits["train"])):
                continue
            found = {split_in(child.rpartition("/")[2]): child for child in children if self.below[child]}
            if "train" in found and found.keys() & {"val", "test"}:
                inside = _and(f"{shown(child)}/" for split, child in sorted(found.items(), key=str) if split)
                raise ValueError(
                    f"{self.name()} holds splits, but not at its top: {inside}. Give "
                    f"dataset.root={shown(self.listing.root)}/{shown(folder)}, or {_settle('classes', 'flat')} to "
                    "train on all of it"
                )

    # -- classes

    def classes(self, root: str) -> tuple[list[str] | None, str]:
        """The names of the classes below the training images' folder, or None; and why."""
        loose, folders = self.direct[root], self.filled(root)
        flat = [folder for folder in folders if self.direct[folder]]
        deeper = self.below[root] - loose - sum(map(self.direct.__getitem__, folders))
        if self.labels == "none":
            return None, "without labels, as asked"
        if self.labels == "folders":
            if not folders:
                raise ValueError(f"{self.no_class_folders(root)}, or give labels=none")
        elif not folders:
            return None, "no labels: no class folders"
        elif len(folders) == 1:
            return None, f"no labels: {shown(folders[0])}/ is the only folder with images"
        elif 2 * loose >= self.below[root]:
            return None, f"no labels: {loose:,} of {_images(self.below[root])} lie outside class folders"
        elif not self.are_strays(loose, len(folders), self.below[root]):
            raise ValueError(
                f"it cannot be told whether {self.name(root)} has classes: {_images(loose)} lie directly in it, and "
                f"{self.below[root] - loose:,} in {len(folders):,} folders. {_settle('classes')} takes the folders "
                f"as classes and leaves the {loose:,} out; {_settle('flat')} takes all images without labels"
            )
        elif len(flat) < 2 or not self.are_strays(deeper, len(folders), self.below[root]):
            return (
                None,
                f"no labels: {_images(deeper)} lie deeper than one folder ({_settle('classes')} takes the first)",
            )
        names = sorted({same_name(folder.rpartition("/")[2]) for folder in folders})
        why = "1 class" if len(names) == 1 else f"{len(names):,} classes"
        if deeper:
            why += f" ({_images(deeper)} deeper down count to their first folder)"
        alike = [name for name, number in Counter(name.casefold() for name in names).items() if number > 1]
        if alike:
            same = [name for name in names if name.casefold() in alike]
            why += f" ({_and(map(shown, same[:4]))} are different classes)"
        return names, f"{why}: {_few([shown(name) for name in names], 5)}"

    def part(self, root: str, numbers: dict[str, int] | None) -> Part:
        """The folders to read below `root`; with classes, images directly in `root` are left out."""
        inside = [folder for folder, number in self.direct.items() if number and _lies_in(folder, root)]
        if numbers is None:
            return Part(root, dict.fromkeys(inside))
        if self.direct[root]:
            self.leave_out_strays(root)
        if not root:
            first = {folder: folder.partition("/")[0] for folder in inside}
        else:
            first = {folder: folder[len(root) + 1 :].partition("/")[0] for folder in inside}
        return Part(root, {folder: numbers[same_name(first[folder])] for folder in inside if folder != root})

    def val_part(self, root: str, numbers: dict[str, int] | None, why: str) -> Part:
        if numbers is None:
            return self.part(root, None)
        folders = self.filled(root)
        if not folders or not self.are_strays(self.direct[root], len(folders), self.below[root]):
            raise ValueError(f"{self.no_class_folders(root)}; the training images have {why}")
        by_case: dict[str, list[str]] = {}
        for name in numbers:
            by_case.setdefault(name.casefold(), []).append(name)
        matched, unknown = dict(numbers), []
        for name in (same_name(folder.rpartition("/")[2]) for folder in folders):
            close = by_case.get(name.casefold(), [])
            if name not in numbers and len(close) == 1:
                matched[name] = numbers[close[0]]
            elif name not in numbers:
                unknown.append(shown(name))
        if unknown:
            raise ValueError(
                f"{self.name(root)} has {len(unknown)} class folders that the training images do not have: "
                f"{', '.join(sorted(unknown)[:5])}; there are {why}"
            )
        return self.part(root, matched)

    def no_class_folders(self, root: str) -> str:
        first = shown(min(self.listing.images[root], default=""))
        return (
            f"{self.direct[root]:,} images lie directly in {self.name(root)} (the first is '{first}') and not in class "
            f"folders ({self.name(root)[:-1]}/<class>/<image>'): sort them into folders"
        )

    # -- what is told

    def reading(self, splits: dict[str, str], why: str) -> str:
        if not splits:
            return why
        shown_splits = [f"{shown(splits[split])}/" for split in ("train", "val") if split in splits]
        verb = "are the splits" if len(shown_splits) > 1 else "is the training split"
        return f"{_and(shown_splits)} {verb}; {why}"

    def leave_out_strays(self, root: str, outside: str = "class folders") -> None:
        prefix = f"{root}/" if root else ""
        names = [shown(prefix + name) for name in sorted(self.listing.images[root])]
        self.left_out.append(f"{_few(names, 3)} (outside {outside})")

    def leave_out_the_rest(self, used: list[str], splits: dict[str, str]) -> None:
        """Name folders beside the splits, empty folders, other kinds of files, and what could not be read."""
        if splits and self.direct[""]:
            self.leave_out_strays("", "the splits")
        others: Counter[str] = Counter()
        for folder, kinds in self.listing.others.items():
            if any(_lies_in(folder, root) for root in used):
                others += kinds
        for folder in sorted(self.children[""]) if splits else ():
            if folder not in used:
                never = ", never read" if folder == splits.get("test") else ""
                number = self.below[folder]
                self.left_out.append(f"{shown(folder)}/ ({_images(number) if number else 'no image'}{never})")
        empty = sorted(folder for root in used for folder in self.children[root] if not self.below[folder])
        self.left_out += [f"{shown(folder)}/ (no image)" for folder in empty]
        self.left_out += [f"{shown(run)}/ (runs of esvit_pl)" for run in self.listing.runs]
        self.left_out += [f"{shown(path)} ({why})" for path, why in sorted(self.listing.skipped)]
        if others:
            self.left_out.append(_kinds(others))

    def missing(self) -> str:
        """Why there is no image: what was looked for, and what was found."""
        found: Counter[str] = sum(self.listing.others.values(), Counter())
        wanted = " ".join(extension[1:] for extension in EXTENSIONS)
        there = [_kinds(found)] if found else []
        there += [f"{shown(run)}/ (runs of esvit_pl)" for run in self.listing.runs[:3]]
        there += [f"{shown(path)} ({why})" for path, why in self.listing.skipped[:3]]
        return f"looked for {wanted}, in upper or lower case{f'; there are {_and(there)}' if there else ''}"

    # -- small questions

    def filled(self, folder: str) -> list[str]:
        """The children of a folder that hold images, in the order of their names."""
        return sorted(child for child in self.children[folder] if self.below[child])

    @staticmethod
    def are_strays(loose: int, folders: int, images: int) -> bool:
        """Whether so few images lie in the wrong place that they do not decide: fewer than folders, or one in ten."""
        return loose < folders or 10 * loose <= images

    def name(self, folder: str = "") -> str:
        path = PurePath(self.listing.root, folder)
        return f"'{shown(path)}'"


def _lies_in(folder: str, root: str) -> bool:
    return not root or folder == root or folder.startswith(f"{root}/")


def _settle(*layouts: str) -> str:
    return " or ".join(f"dataset.layout={layout}" for layout in layouts)


def _images(number: int) -> str:
    return f"{number:,} image{'' if number == 1 else 's'}"


def _kinds(others: Counter[str]) -> str:
    """
    >>> _kinds(Counter({".heic": 12, "": 1}))
    '12 .heic, 1 without an extension'
    """
    kinds = [f"{number:,} {shown(kind) or 'without an extension'}" for kind, number in others.most_common()]
    return _few(kinds, 6)


def _few(words: Sequence[str], most: int) -> str:
    shown_words = list(words[:most])
    return ", ".join(shown_words) + (f" and {len(words) - most:,} more" if len(words) > most else "")


def _and(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last
