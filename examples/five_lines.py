"""Open a bundle, open a gallery, bring it in step with a folder, ask, look."""

from nsfse_runtime import Gallery, Retriever, open_model

model = open_model("bundle")
gallery = Gallery.open("my.gallery", model, create=True)
gallery.sync("photos")
for hit in Retriever(model, gallery).query("dress.jpg", "make it red", k=10).hits:
    print(hit.id, round(hit.score, 2), hit.is_match, [word.word for word in hit.evidence if not word.matched])
