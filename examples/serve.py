"""Serve captions over HTTP, in batches of whatever images have come in while the model was busy.

    pip install '.[serve]'
    python examples/serve.py [FOLDER] [--port 8000]
    curl --data-binary @photo.jpg -H "Content-Type: image/jpeg" http://127.0.0.1:8000/caption

FOLDER is a converted captioner, by default the digits checkpoint, converted now. Requests that cannot be answered get
a status of 4xx and a sentence, and never stop the others of their batch.
"""

import argparse
import asyncio
import io
from contextlib import asynccontextmanager
from pathlib import Path

import torch
import uvicorn
from digits.model_folder import model_folder
from fastapi import FastAPI, HTTPException, Request
from PIL import Image
from transformers import AutoModel, AutoProcessor

import open_clip_transformers  # noqa: F401  (registers the models)


MAX_BYTES, MAX_PIXELS, MAX_BATCH = 20_000_000, 50_000_000, 16


async def pixels_of(request: Request, image_processor) -> torch.Tensor:
    """Read the image that a request holds; refuse others, and those that are too large, with a sentence."""
    if not request.headers.get("content-type", "").startswith("image/"):
        raise HTTPException(415, "Send the bytes of an image, with its Content-Type, such as image/jpeg.")
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > MAX_BYTES:
            raise HTTPException(413, f"The image has more than {MAX_BYTES} bytes.")

    def read() -> torch.Tensor:
        with Image.open(io.BytesIO(content)) as image:
            if image.width * image.height > MAX_PIXELS:
                size = f"{image.width} x {image.height}"
                raise HTTPException(413, f"The image has {size} pixels, and at most {MAX_PIXELS} are read.")
            return image_processor(image, return_tensors="pt").pixel_values[0]

    try:
        return await asyncio.to_thread(read)
    except HTTPException:
        raise
    except Image.DecompressionBombError as error:
        raise HTTPException(413, f"The image has too many pixels: at most {MAX_PIXELS} are read.") from error
    except Exception as error:  # Pillow raises nearly everything
        raise HTTPException(400, "This is no image that can be read, or a damaged one.") from error


def make_app(model, processor) -> FastAPI:
    waiting: asyncio.Queue = asyncio.Queue()

    def write(images: list[torch.Tensor]) -> list[str]:
        ids = model.generate(pixel_values=torch.stack(images).to(model.device, model.dtype))
        return processor.batch_decode(ids, skip_special_tokens=True)

    async def answer(batch: list[tuple[torch.Tensor, asyncio.Future]]):
        try:
            captions = await asyncio.to_thread(write, [image for image, _ in batch])
        except Exception as error:
            for one in batch if len(batch) > 1 else []:  # to find which of them it was
                await answer([one])
            captions = [error] * len(batch)
        for (_, future), caption in zip(batch, captions):
            if not future.done():  # as it is where the client has left
                (future.set_exception if isinstance(caption, Exception) else future.set_result)(caption)

    async def work():
        while True:
            batch = [await waiting.get()]
            while len(batch) < MAX_BATCH and not waiting.empty():
                batch.append(waiting.get_nowait())
            await answer(batch)

    @asynccontextmanager
    async def lifespan(app: FastAPI):
        worker = asyncio.create_task(work())
        yield
        worker.cancel()

    app = FastAPI(lifespan=lifespan)

    @app.post("/caption")
    async def caption(request: Request) -> dict[str, str]:
        image, future = await pixels_of(request, processor.image_processor), asyncio.Future()
        waiting.put_nowait((image, future))
        return {"caption": await future}

    return app


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", help="converted captioner (default: the digits checkpoint)")
    parser.add_argument("--host", default="127.0.0.1", help="address to serve at (default: this machine alone)")
    parser.add_argument("--port", type=int, default=8000, help="port to serve at (default: 8000)")
    args = parser.parse_args()
    with model_folder(args.folder) as folder:
        model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    # Beyond so many requests at once the answer is 503.
    uvicorn.run(make_app(model, processor), host=args.host, port=args.port, limit_concurrency=200)


if __name__ == "__main__":
    main()
