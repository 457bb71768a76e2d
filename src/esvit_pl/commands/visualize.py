"""``esvit-visualize``: pictures of what a backbone has learned, and how right they are."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from esvit_pl.configs.command_line import command

EXAMPLES = [
    "esvit-visualize draw=attention image=photo.jpg query=[80,120] ckpt_path=RUN",
    "esvit-visualize draw=correspondence image=photo.jpg ckpt_path={L_V:RUN,both:RUN} untrained=true",
    "esvit-visualize measure=correspondence ckpt_path=RUN dataset=folder dataset.root=photos/",
]
NEEDED = {
    "attention": ("image", "ckpt_path"),
    "correspondence": ("image", "ckpt_path"),
    "pca": ("image", "ckpt_path"),
    "neighbours": ("ckpt_path",),
    "views": ("image",),
}


def needs(cfg: DictConfig) -> str | None:
    from esvit_pl.configs import assemble

    chosen = {group: assemble.choice(group) for group in ("draw", "measure")}
    given = {group: name for group, name in chosen.items() if name not in (None, "null")}
    if len(given) != 1:
        return "esvit-visualize needs draw= or measure=, one of them"
    ((group, name),) = given.items()
    keys = ("ckpt_path",) if group == "measure" else NEEDED.get(str(name), ())
    missing = [key for key in keys if OmegaConf.select(cfg, key) is None]
    return f"{group}={name} needs {' and '.join(f'{key}=' for key in missing)}" if missing else None


@command("visualize", summary="draw and measure what a backbone has learned.", examples=EXAMPLES, needs=needs)
def main(cfg: DictConfig) -> None:
    from esvit_pl.commands import drawings
    from esvit_pl.configs import assemble

    name = assemble.choice("draw")
    if name in (None, "null"):
        drawings.measure_correspondence(cfg)
    else:
        drawings.DRAWINGS[str(name)](cfg)


if __name__ == "__main__":
    main()
