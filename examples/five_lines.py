"""Open a bundle, open a gallery, bring it in step with a folder, ask, look."""

from nsfse_runtime import Bundle, Gallery, Retriever

bundle = Bundle.open("bundle")
gallery = Gallery.open("my.gallery", bundle, create=True)
gallery.sync("photos")
for hit in Retriever(bundle, gallery).query("dress.jpg", "make it red", k=10).hits:
    print(hit.id, round(hit.score, 2), hit.is_match, [word.word for word in hit.evidence if not word.matched])
