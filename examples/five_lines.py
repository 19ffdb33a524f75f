"""Open a bundle, index a folder, search it."""

from nsfse_runtime import Gallery, Retriever, open_model

model = open_model("bundle")
gallery = Gallery.open("my.gallery", model, create=True)
gallery.sync("photos")
for hit in Retriever(model, gallery).query("dress.jpg", "make it red").hits:
    print(hit.id, round(hit.score, 2), hit.is_match)
