"""nbval compares stderr too; a warning on the reader's machine is not a result. And it starts a kernel once, which dies
if another process takes a port that was free when it was chosen: here it has three tries."""

from nbval import kernel

start_once = kernel.start_new_kernel


def start_new_kernel(*args, tries=3, **kwargs):
    try:
        return start_once(*args, **kwargs)
    except RuntimeError:
        if tries == 1:
            raise
        return start_new_kernel(*args, tries=tries - 1, **kwargs)


kernel.start_new_kernel = start_new_kernel


def pytest_collection_modifyitems(items):
    for chapter in {item.parent for item in items}:
        if hasattr(chapter, "skip_compare"):
            chapter.skip_compare += ("stderr",)
