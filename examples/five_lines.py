"""Open a bundle, index a folder, search it."""

from nsfse_runtime import Gallery, Retriever, open_model

model = open_model("bundle")
gallery = Gallery.open("my.gallery", model, create=True)
gallery.sync("photos")
<<<<<<< HEAD
for hit in Retriever(model, gallery).query("dress.jpg", "make it red", k=10).hits:
    print(hit.id, round(hit.score, 2), hit.is_match, [word.word for word in hit.evidence if not word.matched])
=======
for hit in Retriever(bundle, gallery).query("dress.jpg", "make it red").hits:
    print(hit.id, round(hit.score, 2), hit.is_match)
>>>>>>> 1293d31 (Rewrite the docs as short pages with one question each)
