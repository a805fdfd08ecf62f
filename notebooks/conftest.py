"""nbval compares stderr too; a warning on the reader's machine is not a result."""


def pytest_collection_modifyitems(items):
    for chapter in {item.parent for item in items}:
        if hasattr(chapter, "skip_compare"):
            chapter.skip_compare += ("stderr",)
