# docker build -f docker/cpu.Dockerfile -t clipbias . && docker run --rm -v "$PWD/workdir:/clipbias/workdir" clipbias \
#     clipbias table1 --config=configs/demo.py
FROM python:3.11-slim
WORKDIR /clipbias
COPY . .
RUN pip install --no-cache-dir -e .
CMD ["clipbias", "table1", "--config=configs/demo.py"]
