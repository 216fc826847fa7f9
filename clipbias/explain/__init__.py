"""Why an adaptation works: relevancy, attention statistics, decomposition, interventions and a verdict."""
