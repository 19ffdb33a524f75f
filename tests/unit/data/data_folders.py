"""Small valid folders of every data set, for tests that then spoil one file."""

import json
from pathlib import Path

from PIL import Image


def draw(path, colour=(200, 30, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 9), colour).save(path)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def fashioniq(folder: Path) -> Path:
    ids = [f"B{i}" for i in range(5)]
    for split in ("train", "val", "test"):
        write(folder / f"image_splits/split.dress.{split}.json", ids)
        pairs = [
            {"candidate": ids[i], "target": ids[i + 1], "captions": ["is red.", f"has {i} dots"]} for i in range(3)
        ]
        for pair in pairs if split == "test" else ():
            del pair["target"]
        write(folder / f"captions/cap.dress.{split}.json", pairs)
    for item in ids:
        draw(folder / f"images/{item}.png")
    return folder


def cirr(folder: Path) -> Path:
    for split in ("train", "val", "test1"):
        names = [f"{split}-{i}-img0" for i in range(8)]
        write(folder / f"image_splits/split.rc2.{split}.json", {name: f"./{split}/{name}.png" for name in names})
        pairs = []
        for i in range(2):
            pair = {"pairid": 10 * len(split) + i, "reference": names[i], "caption": f"{i + 1} dogs"}
            if split != "test1":
                pair |= {"target_hard": names[i + 1], "target_soft": {names[i + 1]: 1.0, names[i + 2]: -1}}
            pairs.append(pair | {"img_set": {"id": i, "members": names[i : i + 6], "reference_rank": 0}})
        write(folder / f"captions/cap.rc2.{split}.json", pairs)
        for name in names:
            draw(folder / f"{split}/{name}.png")
    return folder


def path200k(item):
    return f"women/dresses/x/{item}/{item}_0.jpeg"


def fashion200k(folder: Path) -> Path:
    said = ["red mini dress", "blue mini dress", "green mini dress", "red long dress"]
    for split, letter in (("train", "a"), ("test", "b")):
        lines = [f"{path200k(f'{letter}{i}')}\t0.9\t{caption}\n" for i, caption in enumerate(said)]
        write(folder / f"labels/dress_{split}_detect_all.txt", "".join(lines))
        for i in range(len(said)):
            draw(folder / path200k(f"{letter}{i}"))
    write(folder / "test_queries.txt", f"{path200k('b0')} {path200k('b1')}\n{path200k('b1')} {path200k('b2')}\n")
    return folder


def shoes(folder: Path) -> Path:
    names = [f"img_womens_{i}.jpg" for i in range(6)]
    write(folder / "train_im_names.txt", "\n".join(names[:3]))
    write(folder / "eval_im_names.txt", "\n".join(names[3:]) + "\n")
    write(
        folder / "relative_captions_shoes.json",
        [
            {"ReferenceImageName": names[r], "ImageName": names[t], "RelativeCaption": f"{t} buckles"}
            for r, t in ((0, 1), (1, 2), (3, 4), (4, 5))
        ],
    )
    for name in names:
        draw(folder / f"womens/0/{name}")
    return folder


def table(folder: Path) -> Path:
    rows = [
        {"reference": "a", "target": "b", "text": "make it red"},
        {"reference": "b.png", "target": ["c", "d"], "text": ["longer", "make it long"], "split": "val"},
    ]
    write(folder / "mine.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    for name in "abcd":
        draw(folder / f"images/{name}.png")
    return folder


def table_csv(folder: Path) -> Path:
    write(folder / "mine.csv", 'reference,target,text,split\na,b,"red, please",\nb,c,longer,val\n')
    for name in "abc":
        draw(folder / f"images/{name}.png")
    return folder


def queryset(folder: Path) -> Path:
    write(folder / "items.csv", "id,split,colour\na,val,red\nb,val,blue\nc,val,red\nd,train,red\ne,train,blue\n")
    rows = [
        {"protocol": "p", "split": "val", "reference": "a", "texts": ["in blue", "blue"], "targets": ["b"]},
        {"protocol": "p", "split": "val", "reference": "a", "texts": ["x"], "targets": ["b"], "hard_negatives": ["c"]},
        {"protocol": "p", "split": "train", "reference": "d", "texts": ["blue"], "targets": ["e"], "kind": "colour"},
        {
            **{"protocol": "q", "reference": "a", "texts": ["blue"], "targets": ["b"], "more_texts": [["long"]]},
            **{"more_references": ["c"], "negative_texts": ["dots"], "negative_images": ["d"]},
        },
    ]
    write(folder / "queries.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    for name in "abcde":
        draw(folder / f"images/{name}.png")
    return folder


FOLDERS = {
    "fashioniq": fashioniq,
    "cirr": cirr,
    "fashion200k": fashion200k,
    "shoes": shoes,
    "table": table,
    "queryset": queryset,
    "catalogue": queryset,
}
