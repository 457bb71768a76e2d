
def test_x(pretrained):
    print(pretrained.out)
    print(pretrained.err)
    print(pretrained.results)
    print(pretrained.names())
    assert 0
