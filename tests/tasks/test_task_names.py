import pytest

from seekr_cl.errors import DataError
from seekr_cl.tasks import Example, Task
from seekr_cl.tasks.task import safe_name


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("a b/c", "a-b-c"),
        ("../../etc", "etc"),
        (".hidden", "hidden"),
        ("C-STANCE_1.0", "C-STANCE_1.0"),
        ("任务", "任务"),
    ],
)
def test_safe_name(name, slug):
    assert safe_name(name) == slug


@pytest.mark.parametrize("name", ["", "..", "/", "?!", "x" * 201])
def test_names_that_are_no_folder(name):
    with pytest.raises(DataError, match="folder name"):
        safe_name(name)
    with pytest.raises(DataError, match="folder name"):
        Task(name, [])


def test_fingerprint_sees_texts_and_borders_but_not_places():
    def mark(prompt, completion, **more):
        return Task("t", [Example(prompt, completion, **more)]).fingerprint()

    assert mark("ab", "c") == mark("ab", "c", source="elsewhere", references=("x",))
    assert (
        len(
            {
                mark("ab", "c"),
                mark("a", "bc"),
                mark("ab", "c", messages=({"role": "assistant", "content": "b"},)),
                mark("c", "ab"),
            }
        )
        == 4
    )
    assert len(mark("a", "b")) == 64
